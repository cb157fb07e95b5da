package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/binfmt"
	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/seccomp"
	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/runspec"
	"github.com/berthvm/berth/guest/engine/stdio"
)

// Start starts a container that has no process. ErrNotModified: it has one.
func (e *Engine) Start(ctx context.Context, name string) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	err = e.start(context.WithoutCancel(ctx), c, startUser)
	if err != nil && !errors.Is(err, ErrNotModified) && c.autoRemove() {
		if rerr := e.remove(context.WithoutCancel(ctx), c, RemoveOptions{Force: true, Volumes: true}); rerr != nil {
			e.log.Warn("cannot remove container", "container", c.id, "error", rerr)
		}
	}
	return err
}

func (c *Container) autoRemove() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.HostConfig.AutoRemove
}

// NoCheckpoint is what is wrong with a start from a checkpoint.
func NoCheckpoint(id string) error {
	if !validName(id) || strings.HasSuffix(id, ".") {
		return invalid("invalid checkpoint ID %q, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", id)
	}
	return invalid("checkpoint is only supported in experimental mode")
}

// startReason says who starts a container.
type startReason int

const (
	startUser    startReason = iota
	startPolicy              // the restart policy, after an exit
	startRestore             // the restart policy, after a boot
)

func (e *Engine) start(ctx context.Context, c *Container, why startReason) error {
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	status := c.rec.State.Status
	c.mu.Unlock()
	switch {
	case status == record.Running:
		return ErrNotModified
	case status == record.Paused:
		return conflict("cannot start a paused container, try unpause instead")
	case status == record.Removing || status == record.Dead:
		return conflict("container is marked for removal and cannot be started")
	case why == startPolicy && status != record.Restarting:
		return ErrNotModified // stopped meanwhile
	}
	defer e.Spans.Begin("start", c.id)()
	b := &building{e: e, c: c}
	err := b.run(ctx)
	if err != nil {
		b.undo(ctx)
		c.startFailed(err)
		return fmt.Errorf("%w", startError(c, err))
	}
	if why == startUser {
		c.mu.Lock()
		c.failures, c.backoff = 0, 0
		c.rec.State.RestartCount = 0
		c.mu.Unlock()
	}
	return nil
}

// building is a container on its way from nothing to running. Its steps run in
// order; undo takes back, in reverse, what has been done.
type building struct {
	e       *Engine
	c       *Container
	cleanup []func(ctx context.Context)

	netns string
	spec  *specs.Spec
	run_  *run
	files []*os.File // the container's ends of its streams
	binds []*os.File // the sources of its bind mounts
	ends  ends
}

// ends are the engine's ends of a process's streams.
type ends struct {
	stdin, stdout, stderr *os.File
	master                *os.File // instead of the others
}

func (b *building) onUndo(f func(ctx context.Context)) { b.cleanup = append(b.cleanup, f) }

func (b *building) undo(ctx context.Context) {
	for _, f := range slices.Backward(b.cleanup) {
		f(ctx)
	}
}

func (b *building) run(ctx context.Context) error {
	steps := []struct {
		name string
		f    func(context.Context) error
	}{
		{"platform", b.platform},
		{"mount", b.mount},
		{"network", b.network},
		{"setup", b.setup},
		{"clone", b.clone},
		{"exec", b.exec},
	}
	for _, s := range steps {
		done := b.e.Spans.Begin(s.name, b.c.id)
		err := s.f(ctx)
		done()
		if err != nil {
			b.closeFiles()
			return err
		}
	}
	return nil
}

func (b *building) closeFiles() {
	for _, f := range b.files {
		f.Close()
	}
	for _, f := range b.binds {
		f.Close()
	}
	b.files, b.binds = nil, nil
}

// platform has the kernel run the programs of an image for another architecture.
func (b *building) platform(context.Context) error {
	if m := b.c.rec.Manifest; m != nil && m.Platform != nil {
		if err := binfmt.Need(m.Platform.Architecture); err != nil {
			return internal(err)
		}
	}
	return nil
}

// mount mounts the root file system.
func (b *building) mount(ctx context.Context) error {
	target := b.c.rootfs()
	if err := b.e.opts.Images.Mount(ctx, b.c.id, target); err != nil {
		return err
	}
	b.onUndo(func(context.Context) { b.e.unmountRootfs(b.c) })
	return nil
}

func (e *Engine) unmountRootfs(c *Container) {
	if err := e.opts.Images.Unmount(c.rootfs()); err != nil {
		e.log.Warn("cannot unmount", "container", c.id, "error", err)
		return
	}
	_ = os.Remove(c.rootfs())
}

// setup writes the files the engine provides, makes the streams and the
// specification.
func (b *building) setup(ctx context.Context) error {
	c, rec := b.c, b.c.rec
	mounts, binds, err := b.e.mountsOf(ctx, c)
	b.binds = binds
	if err != nil {
		return err
	}
	b.onUndo(func(ctx context.Context) { b.e.releaseMounts(ctx, c) })
	config := rec.Config
	if mode := rec.HostConfig.NetworkMode; mode.IsContainer() {
		if donor, _, err := b.e.donor(ctx, mode.ConnectedContainer()); err == nil {
			shared := *config // who shares a network has the host name that it is known by there
			shared.Hostname, shared.Domainname = donor.rec.Config.Hostname, donor.rec.Config.Domainname
			config = &shared
		}
	}
	in := runspec.Input{ID: c.id, Config: config, HostConfig: rec.HostConfig, Rootfs: c.rootfs(),
		Cgroup: cgroupPath(rec), NetNS: b.netns, Mounts: mounts, CDIDirs: b.e.opts.CDIDirs}
	if rec.HostConfig.IpcMode.IsShareable() {
		if in.Shm, err = b.e.mountShm(c); err != nil {
			return internal(err)
		}
	}
	if err := b.e.joinOthers(ctx, rec, &in); err != nil {
		return internal(err)
	}
	if init := rec.HostConfig.Init; init != nil && *init && !rec.HostConfig.PidMode.IsHost() && !rec.HostConfig.PidMode.IsContainer() {
		in.Init = "/sbin/docker-init"
		in.Mounts = append(in.Mounts, specs.Mount{Destination: in.Init, Type: "bind", Source: b.e.opts.InitPath,
			Options: []string{"bind", "ro"}})
	}
	if err := c.makeWorkingDir(); err != nil {
		return err
	}
	if b.spec, err = runspec.Build(in); err != nil {
		return internal(err)
	}
	if b.ends, b.files, err = openStreams(rec.Config.Tty, rec.Config.OpenStdin); err != nil {
		return err
	}
	b.onUndo(func(context.Context) { b.ends.close() })
	if c.log != nil {
		if err := c.log.Open(); err != nil {
			return err
		}
		b.onUndo(func(context.Context) { _ = c.log.Close() })
	}
	return nil
}

// makeWorkingDir makes the working directory inside the root file system, which is
// mounted, if it is missing there: nothing of it may follow a link out.
func (c *Container) makeWorkingDir() error {
	rootfs, dir := c.rootfs(), c.rec.Config.WorkingDir
	if dir == "" || dir == "/" {
		return nil
	}
	// Who makes directories does not follow links to what is not there, but the joined
	// path has none any more.
	path, err := securejoin.SecureJoin(rootfs, dir)
	if err == nil {
		if _, serr := os.Lstat(path); serr == nil {
			return nil
		}
		err = pathrs.MkdirAll(rootfs, strings.TrimPrefix(path, rootfs), 0o755)
	}
	if err != nil {
		return fmt.Errorf("make the working directory %s: %w", dir, err)
	}
	return nil
}

// CgroupParent is the cgroup of all containers that do not ask for another.
const CgroupParent = "/berth"

// cgroupPath is where a container's cgroup lies in the hierarchy.
func cgroupPath(rec *record.Record) string {
	if parent := rec.HostConfig.CgroupParent; parent != "" {
		return filepath.Join("/", parent, rec.ID)
	}
	return filepath.Join(CgroupParent, rec.ID)
}

// joinOthers finds the namespaces of other containers that this one shares.
func (e *Engine) joinOthers(ctx context.Context, rec *record.Record, in *runspec.Input) error {
	h := rec.HostConfig
	if h.PidMode.IsContainer() {
		_, pid, err := e.donor(ctx, h.PidMode.Container())
		if err != nil {
			return fmt.Errorf("failed to join PID namespace: %w", err)
		}
		in.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	switch {
	case h.IpcMode.IsContainer():
		other, pid, err := e.donor(ctx, h.IpcMode.Container())
		if err == nil && !other.rec.HostConfig.IpcMode.IsShareable() {
			err = invalid("container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.id)
		}
		if err != nil {
			return fmt.Errorf("failed to join IPC namespace: %w", err)
		}
		in.IPCNS, in.Shm = fmt.Sprintf("/proc/%d/ns/ipc", pid), e.shmDir(other.id)
	case h.IpcMode.IsHost():
		in.Shm = "/dev/shm"
	}
	return nil
}

// donor returns a container that runs, whose namespaces can be shared, and its first
// process.
func (e *Engine) donor(ctx context.Context, name string) (*Container, int, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.rec.State.Status == record.Restarting:
		return nil, 0, conflict("Container %s is restarting, wait until the container is running", c.id)
	case !c.rec.State.Status.Alive():
		return nil, 0, conflict("container %s is not running", c.id)
	}
	return c, c.rec.State.PID, nil
}

// internal marks what is wrong with a container at its start, which is not the
// fault of the request to start it.
func internal(err error) error { return errdefs.ErrInternal.WithMessage(err.Error()) }

// openStreams makes the pipes of a process. files are the process's ends; nil ones
// are /dev/null. A terminal is made by the process itself, in its own devpts.
func openStreams(tty, stdin bool) (e ends, files []*os.File, err error) {
	files = make([]*os.File, 3)
	if tty {
		return e, files, nil
	}
	defer func() {
		if err != nil {
			e.close()
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if stdin {
		if files[0], e.stdin, err = os.Pipe(); err != nil {
			return e, nil, fmt.Errorf("make a pipe: %w", err)
		}
	}
	if e.stdout, files[1], err = os.Pipe(); err != nil {
		return e, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if e.stderr, files[2], err = os.Pipe(); err != nil {
		return e, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return e, files, nil
}

func (e *ends) close() {
	for _, f := range e.list() {
		f.Close()
	}
}

// list returns the files in the order in which the keeper holds them.
func (e *ends) list() []*os.File {
	var files []*os.File
	for _, f := range []*os.File{e.master, e.stdout, e.stderr, e.stdin} {
		if f != nil {
			files = append(files, f)
		}
	}
	return files
}

// kept is what the keeper remembers of a process for the engine.
type kept struct {
	TTY   bool       `json:"tty"`
	Stdin bool       `json:"stdin"` // the last file is standard input
	Exec  *ExecState `json:"exec,omitempty"`
}

// endsOf puts the keeper's files back in their places.
func endsOf(k kept, files []*os.File) (ends, error) {
	var e ends
	want := []**os.File{&e.master}
	if !k.TTY {
		want = []**os.File{&e.stdout, &e.stderr}
		if k.Stdin {
			want = append(want, &e.stdin)
		}
	}
	if len(files) != len(want) {
		for _, f := range files {
			f.Close()
		}
		return e, fmt.Errorf("the keeper holds %d files, not %d", len(files), len(want))
	}
	for i, f := range files {
		*want[i] = f
	}
	return e, nil
}

// put deposits a process's streams with the keeper.
func (e *Engine) put(key string, k kept, en ends) error {
	k.TTY, k.Stdin = en.master != nil, en.stdin != nil
	record, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return e.opts.Keeper.Put(key, record, en.list()...)
}

// clone makes the container's first process, which waits to be started.
func (b *building) clone(ctx context.Context) error {
	c, e := b.c, b.e
	if err := e.put(c.key(), kept{}, b.ends); err != nil {
		return err
	}
	b.onUndo(func(context.Context) { _ = e.opts.Keeper.Delete(c.key()) })
	filter, err := filterFor(c.rec.HostConfig, b.spec)
	if err != nil {
		return err
	}
	cfg := container.Config{
		ID: c.id, StateDir: e.stateDir(), Spec: b.spec, Rootfs: c.rootfs(), CgroupPath: b.spec.Linux.CgroupsPath,
		Seccomp: filter, ExecPath: e.opts.ExecPath, CloneParent: e.opts.CloneParent, Detached: true,
		Started: func(pid int, pidfd *os.File) error { return e.opts.Keeper.Adopt(c.key(), pid, pidfd) },
	}
	cfg.Stdin, cfg.Stdout, cfg.Stderr = b.files[0], b.files[1], b.files[2]
	if c.rec.Config.Tty {
		cfg.Console = func(master *os.File) error {
			b.ends.master = master
			return e.put(c.key(), kept{}, b.ends)
		}
	}
	task, err := e.opts.Runtime.Create(ctx, cfg)
	b.closeFiles()
	if err != nil {
		return err
	}
	b.onUndo(func(ctx context.Context) {
		if err := task.Delete(ctx); err != nil {
			e.log.Warn("cannot delete container", "container", c.id, "error", err)
		}
		task.Close()
	})
	b.run_ = &run{pid: task.PID(), task: task, stop: func() {}}
	return nil
}

// exec lets the user's program run, and follows it.
func (b *building) exec(ctx context.Context) error {
	c := b.c
	if err := c.adopt(b.run_, b.ends); err != nil {
		return err
	}
	b.ends = ends{} // the run's now
	b.onUndo(func(context.Context) { c.abandon() })
	now := time.Now().UTC()
	if err := b.run_.task.Start(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begun(b.run_, now); err != nil {
		return err
	}
	if c.rec.HostConfig.AutoRemove {
		c.saveSoon(b.run_)
	} else {
		c.save(!c.rec.HostConfig.RestartPolicy.IsNone()) // only a policy must know after a power cut
	}
	c.watch(b.run_)
	return nil
}

// begun puts it in the record, which is not saved, that r has begun. The caller
// holds mu.
func (c *Container) begun(r *run, at time.Time) error {
	st := &c.rec.State
	if err := st.Status.Transition(record.Running); err != nil {
		return err
	}
	st.PID, st.ExitCode, st.Error, st.OOMKilled, st.Stopped = r.pid, 0, "", false, false
	st.StartedAt, st.Boot = at, c.e.opts.BootID
	c.event(events.ActionStart)
	return nil
}

// saveSoon writes the record of a run that removes itself once it has lasted a
// moment: most are over before, and nobody but a later boot would read it. An
// engine that takes over goes by the keeper.
func (c *Container) saveSoon(r *run) {
	c.e.goRun(func() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-c.e.ctx.Done():
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.run == r {
			c.save(false)
		}
	})
}

// adopt makes r the container's run and starts to drain its streams.
func (c *Container) adopt(r *run, en ends) error {
	var opened []*os.File
	poll := func(f *os.File) *os.File {
		if f == nil {
			return nil
		}
		p, err := stdio.Pollable(f)
		if err != nil {
			c.e.log.Error("cannot drain a stream", "container", c.id, "error", err)
			return nil
		}
		opened = append(opened, p)
		return p
	}
	stdin, stdout, stderr, master := poll(en.stdin), poll(en.stdout), poll(en.stderr), poll(en.master)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.carry(r, source{stdio.Stdout, master, true}, source{stdio.Stdout, stdout, false}, source{stdio.Stderr, stderr, false}) {
		for _, f := range opened {
			f.Close()
		}
		return errors.New("the engine is shutting down")
	}
	r.master = master
	if err := c.openStdin(stdin, master); err != nil {
		return err
	}
	c.run = r
	return nil
}

// source is where a container's output comes from.
type source struct {
	stream stdio.Stream
	file   *os.File // nil: nowhere
	tty    bool
}

// carry starts to bring a run's output to the log and to those attached. It reports
// false when the engine is shutting down. The caller holds mu.
func (c *Container) carry(r *run, from ...source) bool {
	streams := c.streams
	log, ring := c.takeLog()
	spawn := func(f func() error) bool {
		r.drained.Add(1)
		ok := c.e.goRun(func() {
			defer r.drained.Done()
			if err := f(); err != nil {
				c.e.log.Warn("log entries are lost", "container", c.id, "error", err)
			}
		})
		if !ok {
			r.drained.Done()
		}
		return ok
	}
	var feeding sync.WaitGroup // the ring, which runs before anything is read for it
	feeding.Add(1)
	defer feeding.Done()
	ok := ring == nil || spawn(func() error {
		go func() { feeding.Wait(); ring.Close() }()
		return ring.Run()
	})
	for _, src := range from {
		if src.file == nil || !ok {
			continue
		}
		r.pipes = append(r.pipes, src.file)
		feeding.Add(1)
		if !spawn(func() error {
			defer feeding.Done()
			defer src.file.Close()
			return stdio.Drain(streams, src.stream, src.file, src.tty, log)
		}) {
			feeding.Done()
			ok = false
		}
	}
	return ok
}

// takeLog is what takes the container's output, nil for nothing: its log, or a ring
// before it that somebody has to run.
func (c *Container) takeLog() (stdio.Log, *logfile.Ring) {
	if c.log == nil {
		return nil, nil
	}
	if ring := c.log.Ring(); ring != nil {
		return ring, ring
	}
	return c.log, nil
}

// openStdin gives the streams what the user's input is written to. The caller
// holds mu.
func (c *Container) openStdin(stdin, master *os.File) error {
	switch {
	case master != nil && c.rec.Config.OpenStdin:
		in, err := dup(master)
		if err != nil {
			return err
		}
		c.streams.SetStdin(in, nil)
	case stdin != nil:
		key := c.key()
		c.streams.SetStdin(stdin, func() { _ = c.e.dropStdin(key) })
	default:
		c.streams.SetStdin(nil, nil)
	}
	return nil
}

// abandon takes a run back whose program could not be executed.
func (c *Container) abandon() {
	c.mu.Lock()
	r := c.run
	c.run = nil
	c.mu.Unlock()
	for _, f := range r.pipes {
		f.Close()
	}
	r.drained.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams.End()
	c.streams = stdio.NewSet()
}

// dropStdin makes the keeper forget standard input, so that its reader sees the
// end.
func (e *Engine) dropStdin(key string) error {
	entry, err := e.opts.Keeper.Get(key)
	if err != nil {
		return err
	}
	var k kept
	if err := json.Unmarshal(entry.Record, &k); err != nil {
		return err
	}
	en, err := endsOf(k, entry.Files)
	if err != nil {
		return err
	}
	defer en.close()
	if en.stdin != nil {
		en.stdin.Close()
		en.stdin = nil
	}
	return e.put(key, k, en)
}

func (e *Engine) stateDir() string { return filepath.Join(e.opts.RunDir, "tasks") }

// startFailed records why a start failed. The container stays as it was.
func (c *Container) startFailed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.rec.State
	wasRestarting := st.Status == record.Restarting
	if wasRestarting {
		_ = st.Status.Transition(record.Exited)
	}
	st.ExitCode, st.Error = startCode(err), startError(c, err).Error()
	st.FinishedAt = time.Now().UTC()
	c.save(false)
	if wasRestarting {
		c.notifyExit()
	}
}

// startCode is the exit code of a program that could not be executed, as a shell
// has it, or 128.
func startCode(err error) int {
	switch {
	case !errors.Is(err, container.ErrProgram):
		return 128
	case errors.Is(err, fs.ErrNotExist):
		return 127
	}
	return 126
}

// startError words a failed start as docker does, whose clients look for the
// reason in the text.
func startError(c *Container, err error) error {
	if !errors.Is(err, container.ErrProgram) {
		return err
	}
	args := slices.Concat(c.rec.Config.Entrypoint, c.rec.Config.Cmd)
	return programError(args, err)
}

func programError(args []string, err error) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	return invalid("failed to create task for container: OCI runtime create failed: unable to start container process: "+
		"error during container init: exec: %q: %s", name, programReason(name, err))
}

// programReason says why a program could not be executed.
func programReason(name string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist) && !strings.Contains(name, "/"):
		return "executable file not found in $PATH"
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("stat %s: no such file or directory", name)
	case errors.Is(err, syscall.EPERM):
		return "operation not permitted"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, syscall.ENOEXEC):
		return "exec format error"
	}
	return err.Error()
}

// filterFor returns the system-call filter of a container; nil is none. Nearly
// all containers share one, which package seccomp keeps.
func filterFor(h *apicontainer.HostConfig, spec *specs.Spec) (*seccomp.Filter, error) {
	s, err := runspec.ParseSecurity(h.SecurityOpt)
	if err != nil {
		return nil, err
	}
	if s.Unconfined || h.Privileged && s.Profile == "" {
		return nil, nil
	}
	if s.Profile == "" {
		return seccomp.Default(spec.Process.Capabilities.Bounding)
	}
	rules, err := runspec.Seccomp(s.Profile, spec)
	if err != nil {
		return nil, err
	}
	seccomp.CloseSocketcall(rules)
	filter, err := seccomp.Compile(rules)
	if err != nil {
		return nil, invalid("cannot use the seccomp profile: %v", err)
	}
	return filter, nil
}
