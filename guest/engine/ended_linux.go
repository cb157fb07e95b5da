package engine

import (
	"context"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/cgroup"
)

// endedTask is a task of which nothing is left but its pid: an earlier engine had
// begun to take it down, and crashed before it had recorded the exit.
type endedTask int

func (t endedTask) PID() int                                   { return int(t) }
func (endedTask) Start(context.Context) error                  { return container.ErrNotRunning }
func (endedTask) Signal(syscall.Signal) error                  { return container.ErrNotRunning }
func (endedTask) Pause(context.Context) error                  { return container.ErrNotRunning }
func (endedTask) Resume(context.Context) error                 { return container.ErrNotRunning }
func (endedTask) Update(*specs.LinuxResources) error           { return container.ErrNotRunning }
func (endedTask) Stats() (cgroup.Stats, error)                 { return cgroup.Stats{}, container.ErrNotRunning }
func (endedTask) OOMKills() (uint64, error)                    { return 0, container.ErrNotRunning }
func (endedTask) WatchOOM(context.Context, func(uint64)) error { return container.ErrNotRunning }
func (endedTask) PIDs() ([]int, error)                         { return nil, nil }
func (endedTask) Delete(context.Context) error                 { return nil }
func (endedTask) Close() error                                 { return nil }
func (endedTask) Exec(context.Context, container.ExecConfig) (Process, error) {
	return nil, container.ErrNotRunning
}
