package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/order"
)

// A Container is one container. Its methods are safe for concurrent use.
type Container struct {
	id    string
	dir   string
	state *state        // constant
	group *cgroup.Group // nil: none of its own
	hooks *specs.Hooks

	mu    sync.Mutex
	pidfd *os.File // nil: the process is gone, or Close was called
	start *conn    // waiting for Start, in the process that created it
}

// Load finds a container that Create made, also one made by another process,
// also one whose process has ended meanwhile. An unknown ID is ErrNotFound.
func Load(stateDir, id string) (*Container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	dir := filepath.Join(stateDir, id)
	s, err := loadState(dir, id)
	if err != nil {
		return nil, err
	}
	c := &Container{id: id, dir: dir, state: s, pidfd: s.openProcess()}
	if s.Spec != nil {
		c.hooks = s.Spec.Hooks
	}
	if s.Cgroup != "" {
		if c.group, err = cgroup.At(s.Cgroup); err != nil {
			return nil, fmt.Errorf("container %s: %w", id, err)
		}
	}
	return c, nil
}

// ID is the container's name.
func (c *Container) ID() string { return c.id }

// PID is the first process's number in the caller's PID namespace. The number
// may have been given to another process once the container is Stopped.
func (c *Container) PID() int { return c.state.PID }

// PIDFD is the first process's pidfd, owned by the Container and valid until
// Close. It is nil when the process had ended already at Load.
func (c *Container) PIDFD() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pidfd
}

// Spec is the specification the container was made from, without its seccomp
// filter. It must not be changed. It is nil for what a creator left that died.
func (c *Container) Spec() *specs.Spec { return c.state.Spec }

// isGuest says whether a container lives in a mount namespace that is not its own,
// and whether that is its creator's. Its mounts there, with its root as the
// topmost, are not gone with its processes.
func isGuest(spec *specs.Spec) (guest, inherited bool) {
	if spec == nil || spec.Linux == nil {
		return false, false
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.MountNamespace {
			return ns.Path != "", false
		}
	}
	return true, true
}

// CgroupPath is the container's cgroup from the hierarchy's root, or "".
func (c *Container) CgroupPath() string { return c.state.Cgroup }

// Created is when the container was made.
func (c *Container) Created() time.Time { return c.state.Created }

// Rootfs is the path of the root file system, as the creator saw it.
func (c *Container) Rootfs() string { return c.state.Rootfs }

// Status says where the container is in its life.
func (c *Container) Status() (Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status()
}

func (c *Container) status() (Status, error) {
	switch {
	case exited(c.pidfd):
		return Stopped, nil
	case c.start != nil || c.waitsDetached():
		return Created, nil
	}
	if c.group != nil {
		frozen, err := c.group.Frozen()
		if err != nil {
			return 0, fmt.Errorf("container %s: %w", c.id, err)
		}
		if frozen {
			return Paused, nil
		}
	}
	return Running, nil
}

func (c *Container) waitsDetached() bool {
	var st unix.Stat_t
	return unix.Lstat(filepath.Join(c.dir, startSocket), &st) == nil
}

// Executed reports whether and when the program of a detached container was
// executed, also when it has ended since.
func (c *Container) Executed() (at time.Time, ok bool) {
	info, err := os.Lstat(filepath.Join(c.dir, pendingFile))
	if err != nil || info.Size() > 0 {
		return time.Time{}, false
	}
	return info.ModTime(), true
}

// State is the container's state as the OCI defines it.
func (c *Container) State() (*specs.State, error) {
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	s := c.ociState()
	if s.Status = specs.ContainerState(status.String()); status == Stopped {
		s.Pid = 0
	}
	return &s, nil
}

func (c *Container) ociState() specs.State {
	s := specs.State{Version: specs.Version, ID: c.id, Pid: c.state.PID, Bundle: c.state.Bundle}
	if c.state.Spec != nil {
		s.Annotations = c.state.Spec.Annotations
	}
	return s
}

// Start executes the program. It returns once the kernel has accepted it, or
// with an error that wraps ErrProgram: the container is Stopped then. It is
// ErrState when the container is not Created.
func (c *Container) Start(ctx context.Context) error {
	start, err := c.takeStart()
	if err != nil {
		return err
	}
	defer start.close()
	stop := start.interruptible(ctx)
	defer stop()
	if err := awaitExec(start, c.PIDFD()); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if c.hooks != nil && len(c.hooks.Poststart) > 0 {
		err := runLateHooks(ctx, "poststart", c.hooks.Poststart, stateFor(c.ociState(), specs.StateRunning))
		if err != nil {
			return fmt.Errorf("container %s runs, but: %w", c.id, err)
		}
	}
	return nil
}

// takeStart gets the one connection over which the process is waiting.
func (c *Container) takeStart() (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	status, err := c.status()
	if err != nil {
		return nil, err
	}
	if status != Created {
		return nil, fmt.Errorf("start container %s, which is %s: %w", c.id, status, ErrState)
	}
	if start := c.start; start != nil {
		c.start = nil
		return start, nil
	}
	// By the directory's descriptor: a socket's path has at most 107 bytes.
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), startSocket)}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("start container %s: %w", c.id, err)
	}
	// Whoever removes the name has the start; a second connection is never accepted.
	if err := unix.Unlink(filepath.Join(c.dir, startSocket)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("start container %s, which somebody else starts: %w", c.id, ErrState)
	}
	return newConn(fd)
}

// awaitExec gives the word and waits for what becomes of it.
func awaitExec(c *conn, pidfd *os.File) error {
	if err := c.proceed(); err != nil {
		return describeExit(pidfd, err)
	}
	going := false
	for {
		kind, _, err := c.receive()
		switch {
		case err == nil && kind == order.Going:
			going = true
		case err == nil:
			return fmt.Errorf("the container's first process sent an unexpected message %q", kind)
		case going && errors.Is(err, io.EOF):
			return nil
		default:
			return describeExit(pidfd, err)
		}
	}
}

// Signal sends sig to the first process. It is ErrNotRunning when that has ended.
func (c *Container) Signal(sig syscall.Signal) error {
	return signal(c.PIDFD(), sig, "container "+c.id)
}

func signal(pidfd *os.File, sig syscall.Signal, name string) error {
	if exited(pidfd) {
		return fmt.Errorf("%s: %w", name, ErrNotRunning)
	}
	err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("%s: signal %d: %w", name, sig, err)
	}
	return nil
}

// Kill kills every process of the container's cgroup at once; without a cgroup,
// the first process. No process left is no error.
func (c *Container) Kill() error {
	if c.group != nil && c.group.Exists() {
		return c.group.Kill()
	}
	if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return nil
}

// Pause freezes all processes and returns when they stand still.
func (c *Container) Pause(ctx context.Context) error {
	if err := c.need(Running); err != nil {
		return fmt.Errorf("pause %w", err)
	}
	return c.group.Freeze(ctx)
}

// Resume thaws a paused container.
func (c *Container) Resume(ctx context.Context) error {
	if err := c.need(Paused); err != nil {
		return fmt.Errorf("resume %w", err)
	}
	return c.group.Thaw(ctx)
}

// need checks the status before something that works on the cgroup.
func (c *Container) need(want Status) error {
	status, err := c.Status()
	switch {
	case err != nil:
		return err
	case status != want:
		return fmt.Errorf("container %s, which is %s: %w", c.id, status, ErrState)
	case c.group == nil:
		return fmt.Errorf("container %s: it has no cgroup of its own", c.id)
	}
	return nil
}

// Update changes the limits that r names and keeps the others.
func (c *Container) Update(r *specs.LinuxResources) error {
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status == Stopped {
		return fmt.Errorf("update container %s: %w", c.id, ErrNotRunning)
	}
	if c.group == nil {
		return fmt.Errorf("update container %s: it has no cgroup of its own", c.id)
	}
	if err := cgroup.Check(r); err != nil {
		return badf("%w", err)
	}
	// A controller that nobody needed is off until now.
	if err := c.group.Require(r); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	if err := c.group.Set(r); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	if err := c.group.SetPids(r); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	if len(r.Devices) > 0 {
		return c.group.SetDevices(r.Devices)
	}
	return nil
}

// OOMKills is how many processes the kernel has killed for want of memory. It is
// far cheaper than Stats.
func (c *Container) OOMKills() (uint64, error) {
	if c.group == nil {
		return 0, fmt.Errorf("container %s: it has no cgroup of its own", c.id)
	}
	kills, err := c.group.OOMKills()
	if err != nil {
		return 0, fmt.Errorf("container %s: %w", c.id, err)
	}
	return kills, nil
}

// Stats reads the cgroup's counters.
func (c *Container) Stats() (cgroup.Stats, error) {
	if c.group == nil {
		return cgroup.Stats{}, fmt.Errorf("container %s: it has no cgroup of its own", c.id)
	}
	s, err := c.group.Stats()
	if err != nil && !c.group.Exists() {
		err = ErrNotRunning
	}
	if err != nil {
		return s, fmt.Errorf("container %s: %w", c.id, err)
	}
	return s, nil
}

// WatchOOM calls f each time processes of the container were killed for want of
// memory, with the number of all kills so far, until ctx ends or the container has
// no process any more. Nothing is polled. It returns nil in the latter case.
func (c *Container) WatchOOM(ctx context.Context, f func(kills uint64)) error {
	if c.group == nil {
		return fmt.Errorf("container %s: it has no cgroup of its own", c.id)
	}
	return c.group.WatchOOM(ctx, f)
}

// PIDs lists the container's processes, in the caller's PID namespace.
func (c *Container) PIDs() ([]int, error) {
	if c.group != nil {
		return c.group.PIDs()
	}
	if exited(c.PIDFD()) {
		return nil, nil
	}
	return []int{c.PID()}, nil
}

// Wait reaps the first process and says how it ended. It works only in the
// process that called Create, without CloneParent, and only once.
func (c *Container) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	ws, err := waitFor(ctx, c.PIDFD())
	if err != nil {
		return 0, fmt.Errorf("wait for container %s: %w", c.id, err)
	}
	return ws, nil
}

// Delete kills what is left of the container and removes its cgroup and state.
// It works from any half-made state and may be called again. The process, if it is
// this one's child, is reaped. ErrHook is only a warning.
func (c *Container) Delete(ctx context.Context) error {
	c.mu.Lock()
	start := c.start
	c.start = nil
	c.mu.Unlock()
	start.close()
	if pidfd := c.PIDFD(); !exited(pidfd) {
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	if c.group != nil {
		if err := c.group.Delete(ctx); err != nil {
			return fmt.Errorf("delete container %s: %w", c.id, err)
		}
	}
	if err := awaitExit(ctx, c.PIDFD()); err != nil {
		return fmt.Errorf("delete container %s: its process does not die: %w", c.id, err)
	}
	existed := true
	if _, err := os.Lstat(c.dir); err != nil {
		existed = false
	}
	if guest, inherited := isGuest(c.Spec()); existed && guest && inherited {
		if err := unix.Unmount(c.state.Rootfs, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("delete container %s: unmount its root: %w", c.id, err)
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	if existed && c.hooks != nil && len(c.hooks.Poststop) > 0 {
		state := c.ociState()
		state.Pid = 0
		if err := runLateHooks(ctx, "poststop", c.hooks.Poststop, stateFor(state, specs.StateStopped)); err != nil {
			return fmt.Errorf("container %s is deleted, but: %w", c.id, err)
		}
	}
	return nil
}

// Close gives up the Container's descriptors. The container itself lives on,
// unless it waits for a Start that nobody else can give.
func (c *Container) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.start.close()
	c.start = nil
	if c.pidfd != nil {
		c.pidfd.Close()
		c.pidfd = nil
	}
	return nil
}

// groupFor is the cgroup of a further process: the container's own or one below,
// nil where the container has none.
func (c *Container) groupFor(sub string) (*cgroup.Group, error) {
	below := strings.Trim(sub, "/") != ""
	switch {
	case c.group == nil && below:
		return nil, fmt.Errorf("container %s has no cgroup of its own", c.id)
	case c.group == nil || !below:
		return c.group, nil
	}
	g, err := c.group.Sub(sub)
	if err != nil {
		return nil, badf("%w", err)
	}
	return g, nil
}
