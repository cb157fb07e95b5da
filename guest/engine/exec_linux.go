package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/runspec"
	"github.com/berthvm/berth/guest/engine/stdio"
	"github.com/berthvm/berth/guest/keeper"
)

// execKept is how long an exec that has ended can be inspected.
const execKept = 5 * time.Minute

// Exec is a further process of a container, from its creation on.
type Exec struct {
	e       *Engine
	c       *Container
	in      *run // what it was made for; nil for one that an earlier engine started
	id      string
	streams *stdio.Set
	started chan struct{} // closed when its process runs, or cannot be run
	done    chan struct{} // closed when it has ended

	mu      sync.Mutex // guards what follows
	state   ExecState
	ended   time.Time
	proc    Process
	master  *os.File
	pipes   []*os.File
	drained sync.WaitGroup
}

// ExecState is what is known of an exec.
type ExecState struct {
	ID        string                         `json:"id"`
	Container string                         `json:"container"`
	Config    apicontainer.ExecCreateRequest `json:"config"`
	Started   bool                           `json:"started"`
	Running   bool                           `json:"running"`
	PID       int                            `json:"pid"`
	ExitCode  *int                           `json:"exitCode,omitempty"`
}

// ExecCreate prepares a process for a running container.
func (e *Engine) ExecCreate(ctx context.Context, name string, req apicontainer.ExecCreateRequest) (string, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", invalid("No exec command specified")
	}
	if req.WorkingDir != "" && !path.IsAbs(req.WorkingDir) {
		return "", invalid("the working directory '%s' is invalid, it needs to be an absolute path", req.WorkingDir)
	}
	user := req.User
	req.User, req.WorkingDir = cmp.Or(user, c.rec.Config.User), cmp.Or(req.WorkingDir, c.rec.Config.WorkingDir) // never changed
	if user != "" {                                                                                             // known at once, as docker has it
		c.mu.Lock()
		err := canExec(c, name)
		c.mu.Unlock()
		if err != nil {
			return "", err
		}
		if _, _, err := runspec.User(c.rootfs(), user, nil); err != nil {
			return "", err
		}
	}
	x, err := e.newExec(c, name, req)
	if err != nil {
		return "", err
	}
	x.event(x.action(events.ActionExecCreate))
	return x.id, nil
}

func (e *Engine) newExec(c *Container, name string, req apicontainer.ExecCreateRequest) (*Exec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := canExec(c, name); err != nil {
		return nil, err
	}
	x := &Exec{e: e, c: c, in: c.run, id: record.NewID(), streams: stdio.NewSet(), started: make(chan struct{}), done: make(chan struct{})}
	x.state = ExecState{ID: x.id, Container: c.id, Config: req}
	var old []string
	for id, other := range c.execs {
		if other.expired() {
			delete(c.execs, id)
			old = append(old, id)
		}
	}
	c.execs[x.id] = x
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range old {
		delete(e.execs, id)
	}
	e.execs[x.id] = x
	return x, nil
}

// canExec says why the container, which the client calls by name, runs no exec now.
func canExec(c *Container, name string) error {
	switch c.rec.State.Status {
	case record.Running:
		return nil
	case record.Paused:
		return conflict("Container %s is paused, unpause the container before exec", name)
	case record.Restarting:
		return conflict("Container %s is restarting, wait until the container is running", c.id)
	}
	return conflict("container %s is not running", c.id)
}

// expired reports whether the exec ended long ago. It does not wait for one that is
// being started, which holds mu.
func (x *Exec) expired() bool {
	select {
	case <-x.done:
	default:
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return time.Since(x.ended) > execKept
}

func (x *Exec) event(action events.Action, more ...string) {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	x.c.event(action, append(more, "execID", x.id)...)
}

// action is an event's with the command, which docker writes with a blank after the
// program, whatever follows.
func (x *Exec) action(a events.Action) events.Action {
	cmd := x.state.Config.Cmd // never changed
	return a + events.Action(": "+cmd[0]+" "+strings.Join(cmd[1:], " "))
}

func (e *Engine) findExec(ctx context.Context, id string) (*Exec, error) {
	if err := e.waitReady(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	x := e.execs[id]
	e.mu.Unlock()
	if x == nil || x.missed() {
		return nil, errdefs.ErrNotFound.WithMessage("No such exec instance: " + id)
	}
	return x, nil
}

// missed reports whether the run of the container that the exec was made for has
// ended before the exec was started. While an exec is being started nobody may wait
// for it with the container's mu: a pause in the midst of it would never end.
func (x *Exec) missed() bool {
	x.c.mu.Lock()
	over := x.in != x.c.run
	x.c.mu.Unlock()
	if !over {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return !x.state.Started
}

// ExecInspect says how an exec fares.
func (e *Engine) ExecInspect(ctx context.Context, id string) (ExecState, error) {
	x, err := e.findExec(ctx, id)
	if err != nil {
		return ExecState{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state, nil
}

// ExecResize sets the size of an exec's terminal, in characters.
func (e *Engine) ExecResize(ctx context.Context, id string, height, width uint) error {
	x, err := e.findExec(ctx, id)
	if err != nil {
		return err
	}
	x.c.mu.Lock()
	alive := x.c.rec.State.Status.Alive()
	x.c.mu.Unlock()
	if !alive {
		return conflict("container %s is not running", x.c.id)
	}
	// A client may be faster than the start that it asked for.
	select {
	case <-x.started:
	case <-time.After(resizeWait):
		return errors.New("timeout waiting for exec session ready")
	case <-ctx.Done():
		return ctx.Err()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.state.Running {
		return invalid("exec process is not started")
	}
	if x.master == nil {
		return nil
	}
	return resize(x.master, height, width)
}

// resizeWait bounds how long a resize waits for the exec to be started.
const resizeWait = 10 * time.Second

// ExecStart runs an exec. With a nil Begin in a it is detached: ExecStart returns
// when it runs. Otherwise it returns when the exec has ended or the client has
// detached.
func (e *Engine) ExecStart(ctx context.Context, id string, size *[2]uint, a Attached) error {
	x, err := e.findExec(ctx, id)
	if err != nil {
		return err
	}
	if err := x.claim(); err != nil {
		return err
	}
	if size != nil {
		x.state.Config.ConsoleSize = size
	}
	cfg := x.state.Config
	if a.Begin == nil {
		return x.run(context.WithoutCancel(ctx))
	}
	reader := x.streams.Subscribe(cfg.AttachStdout || cfg.Tty, cfg.AttachStderr)
	out, err := a.Begin(cfg.Tty)
	if err != nil {
		reader.Close()
		x.finish(126)
		return err
	}
	if err := x.run(context.WithoutCancel(ctx)); err != nil {
		reader.Close()
		return err
	}
	in := a.Stdin
	if !cfg.AttachStdin {
		in = nil
	}
	err = x.streams.Attach(ctx, reader, stdio.Attachment{Stdin: in, Interrupt: a.Interrupt, Out: out,
		TTY: cfg.Tty, DetachKeys: a.DetachKeys, CloseStdin: true})
	if errors.Is(err, stdio.ErrDetached) {
		x.event(events.ActionExecDetach)
		return nil
	}
	if err == nil && ctx.Err() == nil {
		<-x.done // so that an inspect that follows knows the exit code
	}
	return err
}

// claim makes sure that an exec runs once, in a container that runs.
func (x *Exec) claim() error {
	x.c.mu.Lock()
	err := canExec(x.c, x.c.id)
	x.c.mu.Unlock()
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.state.Started {
		if x.state.Running {
			return conflict("exec command %s is already running", x.id)
		}
		return conflict("exec command %s has already run", x.id)
	}
	x.state.Started = true
	return nil
}

func (x *Exec) key() string { return "exec/" + x.id }

// run starts the process. When it fails, the exec has ended.
func (x *Exec) run(ctx context.Context) (err error) {
	defer x.e.Spans.Begin("exec", x.c.id)()
	cfg := x.state.Config
	x.event(x.action(events.ActionExecStart))
	defer close(x.started)
	defer func() {
		if err != nil {
			_ = x.e.opts.Keeper.Delete(x.key())
			code := startCode(err)
			if errors.Is(err, container.ErrProgram) {
				err = execError(cfg.Cmd, err)
			}
			x.finish(code)
		}
	}()
	x.c.mu.Lock()
	r := x.c.run
	x.c.mu.Unlock()
	if r == nil {
		return conflict("container %s is not running", x.c.id)
	}
	proc, err := x.process()
	if err != nil {
		return err
	}
	en, files, err := openStreams(cfg.Tty, cfg.AttachStdin)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err := x.e.put(x.key(), kept{Exec: &x.state}, en); err != nil {
		en.close()
		return err
	}
	ec := container.ExecConfig{Process: proc, ExecPath: x.e.opts.ExecPath, CloneParent: x.e.opts.CloneParent,
		Started: func(pid int, pidfd *os.File) error { return x.e.opts.Keeper.Adopt(x.key(), pid, pidfd) }}
	ec.Stdin, ec.Stdout, ec.Stderr = files[0], files[1], files[2]
	x.mu.Lock() // an exit that comes at once waits for what follows
	defer x.mu.Unlock()
	if cfg.Tty {
		ec.Console = func(master *os.File) error {
			en.master = master
			return x.e.put(x.key(), kept{Exec: &x.state}, en)
		}
	}
	p, err := r.task.Exec(ctx, ec)
	if err != nil {
		en.close()
		return err
	}
	x.proc = p
	x.state.Running, x.state.PID = true, p.PID()
	return x.adopt(en)
}

func execError(args []string, err error) error {
	return invalid("OCI runtime exec failed: exec failed: unable to start container process: exec: %q: %s", args[0], programReason(args[0], err))
}

// process makes the specification of the exec's process.
func (x *Exec) process() (*specs.Process, error) {
	rec, req := x.c.rec, x.state.Config
	security, err := runspec.ParseSecurity(rec.HostConfig.SecurityOpt)
	if err != nil {
		return nil, err
	}
	cfg := *rec.Config
	cfg.Tty = req.Tty
	if req.WorkingDir != "" {
		cfg.WorkingDir = req.WorkingDir
	}
	cfg.Env = runspec.ReplaceEnv(cfg.Env, req.Env)
	hc := *rec.HostConfig
	user := cmp.Or(req.User, rec.Config.User)
	hc.Privileged = hc.Privileged || req.Privileged
	hc.ConsoleSize = [2]uint{}
	if req.ConsoleSize != nil {
		hc.ConsoleSize = *req.ConsoleSize
	}
	p, err := runspec.Process(x.c.rootfs(), &cfg, &hc, user, security)
	if err != nil {
		return nil, err
	}
	p.Args = req.Cmd
	return p, nil
}

// adopt starts to drain the exec's streams. The caller holds mu.
func (x *Exec) adopt(en ends) error {
	var err error
	poll := func(f *os.File) *os.File {
		if f == nil {
			return nil
		}
		p, perr := stdio.Pollable(f)
		err = errors.Join(err, perr)
		return p
	}
	stdin, stdout, stderr := poll(en.stdin), poll(en.stdout), poll(en.stderr)
	x.master = poll(en.master)
	if err != nil {
		return err
	}
	drain := func(stream stdio.Stream, f *os.File) {
		if f == nil {
			return
		}
		x.pipes = append(x.pipes, f)
		x.drained.Add(1)
		if !x.e.goRun(func() {
			defer x.drained.Done()
			defer f.Close()
			_ = stdio.Drain(x.streams, stream, f, f == x.master, nil)
		}) {
			x.drained.Done()
			f.Close()
		}
	}
	drain(stdio.Stdout, x.master)
	drain(stdio.Stdout, stdout)
	drain(stdio.Stderr, stderr)
	if x.master != nil && x.state.Config.AttachStdin {
		in, err := dup(x.master)
		if err != nil {
			return err
		}
		x.streams.SetStdin(in, nil)
		return nil
	}
	key := x.key()
	x.streams.SetStdin(stdin, func() { _ = x.e.dropStdin(key) })
	return nil
}

func (x *Exec) handleExit(pid int, status syscall.WaitStatus) {
	x.mu.Lock()
	if x.state.PID != pid || !x.state.Running || x.e.ctx.Err() != nil {
		x.mu.Unlock()
		return
	}
	pipes, proc := x.pipes, x.proc
	x.mu.Unlock()
	// What the process left behind may hold its pipes: docker does not wait for
	// the container's other processes either.
	timer := time.AfterFunc(drainTimeout, func() {
		for _, f := range pipes {
			f.Close()
		}
	})
	x.drained.Wait()
	timer.Stop()
	if proc != nil {
		proc.Close()
	}
	if err := x.e.opts.Keeper.Delete(x.key()); err != nil && !errors.Is(err, keeper.ErrNotFound) {
		x.e.log.Warn("cannot forget exec", "exec", x.id, "error", err)
	}
	x.finish(exitCode(status))
}

// finish records the end. Only the first counts.
func (x *Exec) finish(code int) {
	x.mu.Lock()
	if !x.ended.IsZero() {
		x.mu.Unlock()
		return
	}
	x.state.Running, x.state.Started, x.state.ExitCode = false, true, &code
	x.ended = time.Now()
	x.master = nil
	x.mu.Unlock()
	x.streams.End()
	close(x.done)
	x.event(events.ActionExecDie, "exitCode", strconv.Itoa(code))
}

func (x *Exec) letGo() {
	x.streams.End()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.pipes {
		f.Close()
	}
	if x.proc != nil {
		x.proc.Close()
	}
}

// dropExecs forgets the execs of a container that is removed. Those whose end has
// not been told yet were killed with it.
func (e *Engine) dropExecs(c *Container) {
	c.mu.Lock()
	execs := slices.Collect(maps.Values(c.execs))
	clear(c.execs)
	c.mu.Unlock()
	for _, x := range execs {
		x.mu.Lock()
		running := x.state.Running
		x.mu.Unlock()
		if running {
			x.letGo()
			_ = e.opts.Keeper.Delete(x.key())
			x.finish(128 + int(syscall.SIGKILL))
		}
		e.mu.Lock()
		delete(e.execs, x.id)
		e.mu.Unlock()
	}
}

// probeStart is how long the start of a health check may take.
const probeStart = 30 * time.Second

// runWithin is run with a limit, which is no deadline exceeded to the caller: that
// is of what the exec does.
func (x *Exec) runWithin(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := x.run(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("timed out starting health check for container %s", x.c.id)
	}
	return err
}

// probe runs a command in the container and returns its exit code and the first
// of its output. A command that runs for longer than the timeout, which its start
// is no part of, is killed.
func (c *Container) probe(ctx context.Context, cmd []string, timeout time.Duration, limit int) (int, string, error) {
	x, err := c.e.newExec(c, c.id, apicontainer.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return 0, "", err
	}
	defer func() {
		c.mu.Lock()
		delete(c.execs, x.id)
		c.mu.Unlock()
		c.e.mu.Lock()
		defer c.e.mu.Unlock()
		if x.state.ExitCode != nil {
			delete(c.e.execs, x.id)
		}
	}()
	if err := x.claim(); err != nil {
		return 0, "", err
	}
	reader := x.streams.Subscribe(true, true)
	if err := x.runWithin(ctx, probeStart); err != nil {
		reader.Close()
		return 0, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var out strings.Builder
	stop := context.AfterFunc(ctx, func() {
		_ = x.proc.Signal(syscall.SIGKILL)
		reader.Close()
	})
	defer stop()
	for {
		_, p, err := reader.Next()
		if err != nil {
			break
		}
		out.Write(p[:min(len(p), max(0, limit-out.Len()))])
	}
	reader.Close()
	select {
	case <-x.done:
	case <-c.e.ctx.Done():
		return 0, "", c.e.ctx.Err()
	}
	if ctx.Err() != nil {
		return 0, out.String(), ctx.Err()
	}
	return *x.state.ExitCode, out.String(), nil
}
