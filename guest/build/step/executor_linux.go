package step

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	ctdmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/network"
)

// Networks is what steps need of *network.Manager.
type Networks interface {
	NewNS(ctx context.Context, id string) (path string, err error)
	Attach(ctx context.Context, req network.AttachRequest) (network.Endpoint, error)
	Endpoints(containerID string) []network.Endpoint
	Release(ctx context.Context, containerID string) error
	LendLoopback(containerID string, dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)) error
}

// Options configure New.
type Options struct {
	Log      *slog.Logger
	Networks Networks
	RunDir   string       // on a tmpfs; the Executor's alone
	ExecPath string       // of berth-exec; empty: guest/container's default
	DNS      []netip.Addr // the servers in a step's resolv.conf

	// Loopback connects to addresses of the loopback that a Tool with a network has in
	// place of its own, as net.Dialer's DialContext; nil: it has its own.
	Loopback func(ctx context.Context, network, addr string) (net.Conn, error)
}

// cgroupParent is the cgroup of all steps.
const cgroupParent = "/berth-build"

// Executor runs steps. It implements BuildKit's executor.Executor and is safe for
// concurrent use. Close it when no step runs any more.
type Executor struct {
	opts Options
	warm warmer

	mu      sync.Mutex // guards what follows
	running map[string]*running
	parents map[string]int // cgroups between cgroupParent and steps, with the steps below
}

// running is a step that Exec may join. ready is closed when task is set, done
// when the step has ended or could not begin.
type running struct {
	ready, done chan struct{}
	task        *container.Container
	rootfs      string
}

// New returns an Executor. It ends what one of a former process has left.
func New(o Options) (*Executor, error) {
	e := &Executor{opts: o, running: map[string]*running{}, parents: map[string]int{}}
	e.warm.log, e.warm.cfg = o.Log, container.PoolConfig{Parent: cgroupParent, ExecPath: o.ExecPath, Delay: warmDelay}
	if err := e.sweep(); err != nil {
		return nil, fmt.Errorf("end the steps of former builds: %w", err)
	}
	return e, nil
}

// Close ends what is kept ready for further steps.
func (e *Executor) Close() error { return e.warm.close() }

func (e *Executor) tasks() string { return filepath.Join(e.opts.RunDir, "tasks") }

// sweep kills the processes and undoes the mounts of steps whose Executor died.
// Their networks are forgotten by the networks' own Restore.
func (e *Executor) sweep() error {
	if _, err := os.Lstat(e.opts.RunDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, err := cgroup.At(cgroupParent)
	if err != nil {
		return err
	}
	if g.Exists() {
		if err := g.Delete(ctx); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(e.opts.RunDir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		mounts, _ := os.ReadDir(filepath.Join(e.opts.RunDir, d.Name()))
		for _, m := range mounts {
			_ = unmount(filepath.Join(e.opts.RunDir, d.Name(), m.Name()))
		}
	}
	return os.RemoveAll(e.opts.RunDir)
}

// Run implements executor.Executor: it runs one step and returns when it has ended
// and nothing of it is left. A program that ends with another code than those
// allowed is an *ExitError of BuildKit's.
func (e *Executor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resources.Recorder, error) {
	if id == "" {
		id = newID()
	}
	if err := executor.ValidContainerID(id); err != nil {
		return nil, err
	}
	if process.Meta.Proxy != nil {
		return nil, errProxy
	}
	return nil, e.run(ctx, &building{e: e, id: id, meta: process.Meta}, root, mounts, process, started)
}

// errProxy is for a client that wants steps held to what a policy lets through: a step
// with all of the network would break its word.
var errProxy = errors.New("this builder has no network for steps that goes through BuildKit's proxy")

func newID() string { return strings.ToLower(rand.Text()) }

// run carries b out.
func (e *Executor) run(ctx context.Context, b *building, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (err error) {
	r := &running{ready: make(chan struct{}), done: make(chan struct{})}
	if err := e.add(b.id, r); err != nil {
		return err
	}
	b.pool = e.warm.begin()
	defer e.warm.end()
	b.dir = filepath.Join(e.opts.RunDir, b.id)
	defer func() {
		// Even if the build was cancelled nothing may stay behind.
		if uerr := b.undo(context.WithoutCancel(ctx)); uerr != nil && err == nil {
			err = uerr
		}
		e.remove(b.id, r)
		if started != nil {
			close(started)
		}
	}()
	if err := b.prepare(ctx, root, mounts); err != nil {
		return err
	}
	begun := func(task *container.Container) {
		r.task, r.rootfs = task, b.rootfs
		close(r.ready)
		if started != nil {
			close(started)
			started = nil
		}
	}
	return b.run(ctx, process, begun)
}

func (e *Executor) add(id string, r *running) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil {
		return fmt.Errorf("step %s runs already", id)
	}
	e.running[id] = r
	return nil
}

func (e *Executor) remove(id string, r *running) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
	close(r.done)
}

// building is a step on its way from nothing to running and back.
type building struct {
	e      *Executor
	id     string
	dir    string
	meta   executor.Meta
	tool   bool // it has less rights than a step
	rootfs string
	netns  string
	spec   *specs.Spec
	binds  []*os.File // the sources of its mounts
	pool   *container.Pool
	steps  []func(ctx context.Context) error
}

func (b *building) onUndo(f func(ctx context.Context) error) { b.steps = append(b.steps, f) }

// undo takes everything back, in reverse.
func (b *building) undo(ctx context.Context) error {
	b.closeBinds()
	var errs []error
	for i := len(b.steps) - 1; i >= 0; i-- {
		if err := b.steps[i](ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (b *building) closeBinds() {
	for _, f := range b.binds {
		f.Close()
	}
	b.binds = nil
}

// prepare mounts the root and makes the network.
func (b *building) prepare(ctx context.Context, root executor.Mount, mounts []executor.Mount) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return fmt.Errorf("make the step's directory: %w", err)
	}
	b.onUndo(func(context.Context) error { return os.RemoveAll(b.dir) })
	b.e.holdParents(b.cgroup())
	b.onUndo(func(context.Context) error { return b.e.dropParents(b.cgroup()) })
	if err := b.mountRoot(ctx, root); err != nil {
		return err
	}
	clean := executor.MountStubsCleaner(context.WithoutCancel(ctx), b.rootfs, mounts, b.meta.RemoveMountStubsRecursive)
	b.onUndo(func(context.Context) error { clean(); return nil })
	if err := b.network(ctx); err != nil {
		return err
	}
	return b.makeSpec(ctx, root, mounts)
}

// between lists the cgroups between cgroupParent and a step's, the lowest first.
func between(group string) []string {
	var list []string
	for dir := path.Dir(group); dir != cgroupParent; dir = path.Dir(dir) {
		list = append(list, dir)
	}
	return list
}

// holdParents has the cgroups above a step's stay until dropParents.
func (e *Executor) holdParents(group string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, dir := range between(group) {
		e.parents[dir]++
	}
}

// dropParents removes the cgroups above a step's that it was the last in.
func (e *Executor) dropParents(group string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, dir := range e.unheld(group) {
		g, err := cgroup.At(dir)
		if err != nil {
			return err
		}
		if err := os.Remove(g.Dir()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the cgroup of a build's steps: %w", err)
		}
	}
	return nil
}

// unheld takes a step off the cgroups above it and returns those that hold none any
// more, the lowest first. mu is held.
func (e *Executor) unheld(group string) []string {
	var list []string
	for _, dir := range between(group) {
		if e.parents[dir]--; e.parents[dir] == 0 {
			delete(e.parents, dir)
			list = append(list, dir)
		}
	}
	return list
}

func (b *building) mountRoot(ctx context.Context, root executor.Mount) error {
	list, err := b.source(ctx, root.Src, false)
	if err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	b.rootfs, err = b.mountAt("rootfs", list)
	return err
}

// source gets the mounts of one of BuildKit's sources, until undo.
func (b *building) source(ctx context.Context, src executor.Mountable, readonly bool) ([]ctdmount.Mount, error) {
	ref, err := src.Mount(ctx, readonly)
	if err != nil {
		return nil, err
	}
	list, release, err := ref.Mount()
	if err != nil {
		return nil, err
	}
	if release != nil {
		b.onUndo(func(context.Context) error { return release() })
	}
	return list, nil
}

// mountAt mounts list in the step's directory, until undo.
func (b *building) mountAt(name string, list []ctdmount.Mount) (string, error) {
	target := filepath.Join(b.dir, name)
	if err := os.Mkdir(target, 0o700); err != nil {
		return "", err
	}
	b.onUndo(func(context.Context) error { return unmount(target) })
	if err := ctdmount.All(list, target); err != nil {
		return "", fmt.Errorf("mount %s: %w", name, err)
	}
	return target, nil
}

// unmount takes all mounts off a path. None is no error.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}
