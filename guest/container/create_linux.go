package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/fork"
)

// cleanup undoes a half-made thing, last step first.
type cleanup struct{ steps []func() }

func (c *cleanup) add(f func()) { c.steps = append(c.steps, f) }

// run undoes, unless release was called.
func (c *cleanup) run() {
	for i := len(c.steps) - 1; i >= 0; i-- {
		c.steps[i]()
	}
}

func (c *cleanup) release() { c.steps = nil }

// Validate reports the first thing wrong with cfg. It changes nothing.
func Validate(cfg Config) error {
	_, err := makePlan(&cfg)
	return err
}

// Create builds a container up to the point where its program can be executed.
// ctx bounds the building, not the container's life. When Create fails nothing is
// left of the container; errors in cfg.Spec wrap ErrConfig, and a program that
// cannot be found wraps ErrProgram.
func Create(ctx context.Context, cfg Config) (*Container, error) {
	p, err := makePlan(&cfg)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	c, err := p.create(ctx)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	return c, nil
}

func (p *plan) create(ctx context.Context) (*Container, error) {
	undo := new(cleanup)
	defer undo.run()
	tidy := new(cleanup) // what is to be closed in any case
	defer tidy.run()

	c := &Container{id: p.cfg.ID, dir: filepath.Join(p.cfg.StateDir, p.cfg.ID), group: p.group, hooks: p.spec.Hooks}
	if err := p.makeDir(c, undo); err != nil {
		return nil, err
	}
	tidy.add(p.cfg.Pool.Refill)
	if p.warm = p.cfg.Pool.take(p); p.warm != nil {
		undo.add(p.warm.discard)
		c.group = p.warm.group
	}
	l := &launch{
		order: &p.order, execPath: p.cfg.ExecPath, started: p.cfg.Started, console: p.cfg.Console,
		stdin: p.cfg.Stdin, stdout: p.cfg.Stdout, stderr: p.cfg.Stderr, extra: p.cfg.ExtraFiles,
		command: fork.Command{Flags: p.flags, Sibling: p.cfg.CloneParent}, warm: p.warm,
	}
	if err := p.makeGroup(c, l, undo, tidy); err != nil {
		return nil, err
	}
	if err := p.openNamespaces(l, tidy); err != nil {
		return nil, err
	}
	if err := p.openTrees(l, tidy); err != nil {
		return nil, err
	}
	if p.cfg.Detached {
		if err := listenStart(c.dir, l, tidy); err != nil {
			return nil, err
		}
		if err := makePending(c.dir, l, tidy); err != nil {
			return nil, err
		}
	}
	if p.newUser {
		l.command.MapIDs = p.mapIDs
	}
	if p.order.Guest && p.mountNS == "" {
		under, err := rootMount(p.order.Rootfs)
		if err != nil {
			return nil, err
		}
		undo.add(func() {
			if now, err := rootMount(p.order.Rootfs); err == nil && now != under {
				_ = unix.Unmount(p.order.Rootfs, unix.MNT_DETACH)
			}
		})
	}
	l.forked = func(pid int) error { return p.forked(c, pid) }
	l.hooks = func(int) error { return p.outerHooks(ctx, c) }
	l.ready = func(int) error { return p.ready(c) }

	proc, err := l.run(ctx)
	if err != nil {
		return nil, err
	}
	c.pidfd = proc.pidfd
	if p.cfg.Detached {
		proc.conn.close()
	} else {
		c.start = proc.conn
	}
	undo.release()
	return c, nil
}

func (p *plan) makeDir(c *Container, undo *cleanup) error {
	if err := os.MkdirAll(p.cfg.StateDir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return ErrExists
		}
		return err
	}
	undo.add(func() { os.RemoveAll(c.dir) })
	return saveFilter(c.dir, p.filter)
}

func (p *plan) makeGroup(c *Container, l *launch, undo, tidy *cleanup) error {
	if p.group == nil {
		return nil
	}
	r := p.spec.Linux.Resources
	if r == nil {
		r = &specs.LinuxResources{}
	}
	g, err := c.group, error(nil)
	if p.warm != nil {
		err = g.Require(r)
	} else {
		g, err = cgroup.Create(p.group.Path(), r)
	}
	if err != nil {
		return err
	}
	undo.add(func() {
		// Its own deadline: the caller's may be what ended the creation.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = g.Delete(ctx)
	})
	if err := g.Set(r); err != nil {
		return badf("%w", err)
	}
	if err := g.SetDevices(r.Devices); err != nil {
		return err
	}
	dir, err := g.Open()
	if err != nil {
		return err
	}
	tidy.add(func() { dir.Close() })
	l.command.Cgroup = dir
	return nil
}

// openNamespaces opens what is to be joined and makes sure of its kind. The user
// namespace comes last: the others may need rights that it takes away.
func (p *plan) openNamespaces(l *launch, tidy *cleanup) error {
	if p.mountNS != "" {
		f, err := openNamespace(specs.LinuxNamespace{Type: specs.MountNamespace, Path: p.mountNS}, tidy)
		if err != nil {
			return err
		}
		l.mountNS = f
	}
	var user *fork.Namespace
	for _, ns := range p.joins {
		f, err := openNamespace(ns, tidy)
		if err != nil {
			return err
		}
		want := int(cloneFlags[ns.Type])
		enter := fork.Namespace{File: f, Type: want}
		if p.warm != nil {
			l.joins = append(l.joins, join{f, want})
			continue
		}
		if ns.Type == specs.UserNamespace {
			user = &enter
			continue
		}
		l.command.Join = append(l.command.Join, enter)
	}
	if user != nil {
		l.command.Join = append(l.command.Join, *user)
	}
	return nil
}

func openNamespace(ns specs.LinuxNamespace, tidy *cleanup) (*os.File, error) {
	f, err := os.OpenFile(ns.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, badf("linux.namespaces: %s: %w", ns.Type, err)
	}
	tidy.add(func() { f.Close() })
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != int(cloneFlags[ns.Type]) {
		return nil, badf("linux.namespaces: %s: %s is not a %s namespace", ns.Type, ns.Path, ns.Type)
	}
	return f, nil
}

// rootMount identifies the mount that is seen at the root file system's path.
func rootMount(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("root.path: %w", err)
	}
	return st.Mnt_id, nil
}

// openTrees opens what the first process cannot open by itself.
func (p *plan) openTrees(l *launch, tidy *cleanup) error {
	for _, b := range p.binds {
		if !b.needsTree && p.warm == nil {
			continue
		}
		f, err := openTree(b, p.order.ShareRoot)
		if err != nil {
			return badf("mounts[%d]: %s: %w", b.mount, b.source, err)
		}
		tidy.add(func() { f.Close() })
		l.trees = append(l.trees, f)
		l.treeOf = append(l.treeOf, b.mount)
	}
	if p.warm == nil {
		return nil
	}
	l.order.NewNet = p.flags&unix.CLONE_NEWNET != 0
	f, err := openTree(bind{source: p.order.Rootfs, recursive: true}, false)
	if err != nil {
		return badf("root.path: %s: %w", p.order.Rootfs, err)
	}
	tidy.add(func() { f.Close() })
	l.rootTree = f
	return nil
}

// openTree clones the mounts at t.source. Unless shared, what happens in them
// does not come back here: they are slaves of the original.
func openTree(t bind, shared bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if t.recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.source, flags)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), t.source)
	if !shared {
		attr := &unix.MountAttr{Propagation: unix.MS_SLAVE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			f.Close()
			return nil, err
		}
	}
	if len(t.uids) == 0 {
		return f, nil
	}
	userns, err := mappingNamespace(t.uids, t.gids)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map IDs: %w", err)
	}
	defer userns.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	setFlags := uint(unix.AT_EMPTY_PATH)
	if t.mapRecursive {
		setFlags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", setFlags, attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("map IDs (does the file system support it?): %w", err)
	}
	return f, nil
}

// mappingNamespace makes a user namespace that only carries mappings: a process
// is needed to make one, and is stopped before it runs.
func mappingNamespace(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	var ns *os.File
	errDone := errors.New("done")
	_, _, err = fork.Start(fork.Command{
		Exec: exe, Argv: []string{"-"}, Flags: unix.CLONE_NEWUSER,
		MapIDs: func(pid int) error {
			if err := writeMappings(pid, uids, gids); err != nil {
				return err
			}
			if ns, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user"); err != nil {
				return err
			}
			return errDone
		},
	})
	if err != nil && !errors.Is(err, errDone) {
		return nil, err
	}
	return ns, nil
}

func (p *plan) mapIDs(pid int) error {
	err := writeMappings(pid, p.spec.Linux.UIDMappings, p.spec.Linux.GIDMappings)
	if err != nil {
		return badf("linux.uidMappings: %w", err)
	}
	return nil
}

func writeMappings(pid int, uids, gids []specs.LinuxIDMapping) error {
	for _, m := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"uid_map", uids}, {"gid_map", gids}} {
		var b strings.Builder
		for _, e := range m.maps {
			fmt.Fprintf(&b, "%d %d %d\n", e.ContainerID, e.HostID, e.Size)
		}
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/"+m.file, []byte(b.String()), 0); err != nil {
			return err
		}
	}
	return nil
}

// listenStart makes the socket on which a detached container waits.
func listenStart(dir string, l *launch, tidy *cleanup) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	l.startSocket = os.NewFile(uintptr(fd), startSocket)
	tidy.add(func() { l.startSocket.Close() })
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), startSocket)}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind %s: %w", startSocket, err)
	}
	return unix.Listen(fd, 1)
}

// makePending makes the file that tells whether a detached container's program was
// executed. It shrinks then, which no limit of the program's forbids.
func makePending(dir string, l *launch, tidy *cleanup) error {
	f, err := os.OpenFile(filepath.Join(dir, pendingFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	tidy.add(func() { f.Close() })
	l.pending = f
	return f.Truncate(1)
}

// forked records the process as soon as it exists, so that Delete finds it
// whatever happens next.
func (p *plan) forked(c *Container, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	c.state = &state{
		Version: stateVersion, ID: c.id, PID: pid, StartTime: started, Created: time.Now().UTC(),
		Bundle: p.cfg.Bundle, Rootfs: p.order.Rootfs, Spec: withoutSeccomp(p.spec),
	}
	if c.group != nil {
		c.state.Cgroup = c.group.Path()
	}
	if err := c.state.save(c.dir); err != nil {
		return err
	}
	if p.oom != "" {
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(p.oom), 0); err != nil {
			return badf("process.oomScoreAdj: %w", err)
		}
	}
	p.fillHooks(c)
	return raiseRlimits(pid, p.order.Process.Rlimits)
}

// fillHooks gives the hooks that run inside their state.
func (p *plan) fillHooks(c *Container) {
	for i := range p.order.CreateHooks {
		p.order.CreateHooks[i].State = string(stateFor(c.ociState(), specs.StateCreating))
	}
	for i := range p.order.StartHooks {
		p.order.StartHooks[i].State = string(stateFor(c.ociState(), specs.StateCreated))
	}
}

func (p *plan) outerHooks(ctx context.Context, c *Container) error {
	state := stateFor(c.ociState(), specs.StateCreating)
	//lint:ignore SA1019 bundles still use prestart hooks
	if err := runHooks(ctx, "prestart", p.spec.Hooks.Prestart, state); err != nil {
		return err
	}
	return runHooks(ctx, "createRuntime", p.spec.Hooks.CreateRuntime, state)
}

// ready limits the number of processes: the first process, a Go program, needed a
// few threads until here.
func (p *plan) ready(c *Container) error {
	if c.group == nil {
		return nil
	}
	return c.group.SetPids(p.spec.Linux.Resources)
}

func withoutSeccomp(s *specs.Spec) *specs.Spec {
	if s.Linux.Seccomp == nil {
		return s
	}
	spec, linux := *s, *s.Linux
	linux.Seccomp = nil
	spec.Linux = &linux
	return &spec
}
