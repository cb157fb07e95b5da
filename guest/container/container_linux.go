package container

import (
	"context"
	"errors"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/seccomp"
)

// Errors a caller may match with errors.Is.
var (
	// ErrExists is returned by Create for an ID that is in use.
	ErrExists = errors.New("container already exists")
	// ErrNotFound is returned by Load for an ID that is not in use.
	ErrNotFound = errors.New("container does not exist")
	// ErrNotRunning is returned by calls that need the container's process.
	ErrNotRunning = errors.New("container is not running")
	// ErrState is returned by calls that the container's status does not allow.
	ErrState = errors.New("wrong container state")
	// ErrConfig is wrapped by every error that lies in the specification.
	ErrConfig = errors.New("invalid configuration")
	// ErrProgram is wrapped when the user's program cannot be executed. The
	// system's own reason is wrapped too: fs.ErrNotExist (docker's exit code
	// 127), fs.ErrPermission and ENOEXEC (126).
	ErrProgram = errors.New("cannot execute the program")
)

// Config describes a container to create. The files are borrowed: the caller
// still owns them and may close its copies once Create has returned.
type Config struct {
	ID       string // [A-Za-z0-9][A-Za-z0-9_.+-]*, at most 1024 bytes
	StateDir string // where containers keep their state; a tmpfs. Each has StateDir/ID
	Bundle   string // for hooks and State; may be empty

	// Spec says what to build. Create does not change it. Paths in it are paths
	// of the caller, except mount destinations and the like.
	Spec *specs.Spec
	// Rootfs is the mounted root file system; it goes before Spec.Root.Path.
	Rootfs string
	// CgroupPath is the cgroup v2 of the container, from the hierarchy's root
	// ("/berth/ID"); it goes before Spec.Linux.CgroupsPath. Empty in both: no
	// cgroup of its own.
	CgroupPath string
	// Seccomp, if set, is used in place of Spec.Linux.Seccomp.
	Seccomp *seccomp.Filter

	// Stdin, Stdout and Stderr of the program; nil is /dev/null. With
	// Spec.Process.Terminal they are not used.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles become descriptors 3, 4, ... of the program.
	ExtraFiles []*os.File
	// Console takes the master of a terminal allocated in the container's own
	// devpts, before Create returns. It owns the file. It is needed when
	// Spec.Process.Terminal is set and TTY is not.
	Console func(master *os.File) error
	// TTY is the slave of a terminal made by the caller, for Spec.Process.Terminal.
	TTY *os.File

	// ExecPath is the program berth-exec: "/usr/lib/berth/berth-exec" by default.
	ExecPath string
	// CloneParent makes the container's process a child of the caller's parent,
	// which reaps it. Wait cannot be used then.
	CloneParent bool
	// Started is called when the process exists and before it does anything: it
	// waits until Started has returned, and dies when it returns an error or the
	// caller dies. The pidfd is borrowed.
	Started func(pid int, pidfd *os.File) error
	// Detached lets Start be called by another process than Create, after Load. A
	// container that is not detached dies with its creator until it was started.
	Detached bool
}

// ExecConfig describes a further process in a running container. Fields that
// Config has too mean the same.
type ExecConfig struct {
	Process *specs.Process
	// Seccomp, if set, replaces the container's own filter for this process.
	Seccomp *seccomp.Filter

	Stdin, Stdout, Stderr *os.File
	ExtraFiles            []*os.File
	Console               func(master *os.File) error
	TTY                   *os.File

	ExecPath    string
	CloneParent bool
	Started     func(pid int, pidfd *os.File) error

	// Cgroup is a cgroup below the container's own ("", "a/b") to run in.
	Cgroup string
}

// Status is where a container is in its life.
type Status int

// The statuses. Their names (String) are the OCI's, and are what is persisted.
const (
	Creating Status = iota // being built
	Created                // built; Start has not been called
	Running
	Paused
	Stopped // its first process has ended
)

func (s Status) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	}
	return "invalid"
}

// A Container is one container. Its methods are safe for concurrent use.
type Container struct {
	id  string
	dir string
}

// Create builds a container up to the point where its program can be executed.
// ctx bounds the building, not the container's life. When Create fails nothing is
// left of the container; errors in cfg.Spec wrap ErrConfig.
func Create(ctx context.Context, cfg Config) (*Container, error) {
	return nil, errors.ErrUnsupported
}

// Load finds a container that Create made, also one made by another process,
// also one whose process has ended meanwhile. An unknown ID is ErrNotFound.
func Load(stateDir, id string) (*Container, error) { return nil, errors.ErrUnsupported }

// List returns the IDs that have a directory in stateDir, sorted.
func List(stateDir string) ([]string, error) { return nil, errors.ErrUnsupported }

// ID is the container's name.
func (c *Container) ID() string { return c.id }

// PID is the first process's number in the caller's PID namespace. The number
// may have been given to another process once the container is Stopped.
func (c *Container) PID() int { return 0 }

// PIDFD is the first process's pidfd, owned by the Container.
func (c *Container) PIDFD() *os.File { return nil }

// Spec is the specification the container was made from, without its seccomp
// filter. It must not be changed.
func (c *Container) Spec() *specs.Spec { return nil }

// CgroupPath is the container's cgroup from the hierarchy's root, or "".
func (c *Container) CgroupPath() string { return "" }

// Status says where the container is in its life.
func (c *Container) Status() (Status, error) { return 0, errors.ErrUnsupported }

// State is the container's state as the OCI defines it.
func (c *Container) State() (*specs.State, error) { return nil, errors.ErrUnsupported }

// Start executes the program. It returns once the kernel has accepted it, or
// with an error that wraps ErrProgram: the container is Stopped then. It is
// ErrState when the container is not Created.
func (c *Container) Start(ctx context.Context) error { return errors.ErrUnsupported }

// Signal sends sig to the first process. It is ErrNotRunning when that has ended.
func (c *Container) Signal(sig syscall.Signal) error { return errors.ErrUnsupported }

// Kill kills every process of the container's cgroup at once; without a cgroup,
// the first process. No process left is no error.
func (c *Container) Kill() error { return errors.ErrUnsupported }

// Pause freezes all processes and returns when they stand still.
func (c *Container) Pause(ctx context.Context) error { return errors.ErrUnsupported }

// Resume thaws a paused container.
func (c *Container) Resume(ctx context.Context) error { return errors.ErrUnsupported }

// Update changes the limits that r names and keeps the others.
func (c *Container) Update(r *specs.LinuxResources) error { return errors.ErrUnsupported }

// Stats reads the cgroup's counters.
func (c *Container) Stats() (cgroup.Stats, error) { return cgroup.Stats{}, errors.ErrUnsupported }

// WatchOOM calls f each time processes of the container were killed for want of
// memory, with the number of all kills so far, until ctx ends or the cgroup is
// gone. Nothing is polled. It returns nil when the cgroup is gone.
func (c *Container) WatchOOM(ctx context.Context, f func(kills uint64)) error {
	return errors.ErrUnsupported
}

// PIDs lists the container's processes, in the caller's PID namespace.
func (c *Container) PIDs() ([]int, error) { return nil, errors.ErrUnsupported }

// Wait reaps the first process and says how it ended. It works only in the
// process that called Create, without CloneParent.
func (c *Container) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	return 0, errors.ErrUnsupported
}

// Exec runs a further process in the container. It returns once the kernel has
// accepted its program; otherwise the error wraps ErrProgram.
func (c *Container) Exec(ctx context.Context, cfg ExecConfig) (*Process, error) {
	return nil, errors.ErrUnsupported
}

// Delete kills what is left of the container and removes its cgroup and state.
// It works from any half-made state and may be called again.
func (c *Container) Delete(ctx context.Context) error { return errors.ErrUnsupported }

// Close gives up the Container's descriptors. The container itself lives on.
func (c *Container) Close() error { return errors.ErrUnsupported }

// Process is a process started by Exec. Its methods are safe for concurrent use.
type Process struct {
	pid int
}

// PID is the process's number in the caller's PID namespace.
func (p *Process) PID() int { return p.pid }

// PIDFD is the process's pidfd, owned by the Process.
func (p *Process) PIDFD() *os.File { return nil }

// Signal sends sig to the process. It is ErrNotRunning when it has ended.
func (p *Process) Signal(sig syscall.Signal) error { return errors.ErrUnsupported }

// Wait reaps the process. It works only without CloneParent.
func (p *Process) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	return 0, errors.ErrUnsupported
}

// Close gives up the Process's descriptors. The process itself lives on.
func (p *Process) Close() error { return errors.ErrUnsupported }
