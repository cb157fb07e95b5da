package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/seccomp"
	"github.com/berthvm/berth/guest/engine/runspec"
)

// stopTime bounds the end of a step's processes after they were killed.
const stopTime = 30 * time.Second

// run runs the step's program to its end.
func (b *building) run(ctx context.Context, process executor.ProcessInfo, begun func(*container.Container)) error {
	io, err := openStreams(process)
	if err != nil {
		return err
	}
	defer io.close()
	cfg := container.Config{
		ID: b.id, StateDir: b.e.tasks(), Spec: b.spec, Rootfs: b.rootfs, CgroupPath: b.spec.Linux.CgroupsPath,
		ExecPath: b.e.opts.ExecPath, Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Console: io.console, Pool: b.pool,
	}
	if !b.privileged() {
		if cfg.Seccomp, err = seccomp.Default(b.spec.Process.Capabilities.Bounding); err != nil {
			return err
		}
	}
	task, err := container.Create(ctx, cfg)
	b.closeBinds()
	if err != nil {
		return b.failed(ctx, process, err)
	}
	b.onUndo(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, stopTime)
		defer cancel()
		defer task.Close()
		return task.Delete(ctx)
	})
	if err := task.Start(ctx); err != nil {
		return b.failed(ctx, process, err)
	}
	begun(task)
	wait := io.forward(process)
	status, err := follow(ctx, process.Signal, task)
	if err != nil {
		return err
	}
	wait()
	return result(ctx, code(status), task.OOMKills, process.Meta.ValidExitCodes)
}

func (b *building) privileged() bool { return b.spec.Linux.MaskedPaths == nil }

// failed says why the program did not begin: what lies in the program itself is an
// exit code, as a shell would have it.
func (b *building) failed(ctx context.Context, process executor.ProcessInfo, err error) error {
	if !errors.Is(err, container.ErrProgram) || ctx.Err() != nil {
		return err
	}
	if process.Stderr != nil {
		fmt.Fprintln(process.Stderr, err)
	}
	exit := 126
	if errors.Is(err, fs.ErrNotExist) {
		exit = 127
	}
	return result(ctx, exit, nil, process.Meta.ValidExitCodes)
}

// waiter is a process that can be waited for.
type waiter interface {
	Wait(ctx context.Context) (syscall.WaitStatus, error)
	Signal(sig syscall.Signal) error
}

// follow waits for the end of a process and passes signals on. When ctx ends, the
// process is killed.
func follow(ctx context.Context, signals <-chan syscall.Signal, p waiter) (syscall.WaitStatus, error) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		done := ctx.Done()
		for {
			select {
			case <-ended:
				return
			case <-done:
				done = nil
				kill(p)
			case sig, ok := <-signals:
				if !ok {
					signals = nil
				} else {
					_ = p.Signal(sig)
				}
			}
		}
	})
	status, err := p.Wait(context.WithoutCancel(ctx))
	close(ended)
	wg.Wait()
	return status, err
}

func kill(p waiter) {
	if c, ok := p.(*container.Container); ok {
		_ = c.Kill()
		return
	}
	_ = p.Signal(syscall.SIGKILL)
}

func code(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// result turns an exit code into BuildKit's error, or into none for those allowed.
func result(ctx context.Context, exit int, oomKills func() (uint64, error), valid []int) error {
	if err := ctx.Err(); err != nil {
		return &gateway.ExitError{ExitCode: uint32(exit), Err: context.Cause(ctx)}
	}
	if valid == nil {
		valid = []int{0}
	}
	if slices.Contains(valid, exit) {
		return nil
	}
	e := &gateway.ExitError{ExitCode: uint32(exit)}
	if oomKills != nil {
		if n, err := oomKills(); err == nil && n > 0 {
			e.Err = syscall.ENOMEM
		}
	}
	return e
}

// Exec implements executor.Executor: it runs a further process in a step.
func (e *Executor) Exec(ctx context.Context, id string, process executor.ProcessInfo) error {
	e.mu.Lock()
	r := e.running[id]
	e.mu.Unlock()
	if r == nil {
		return fmt.Errorf("container %s not found", id)
	}
	select {
	case <-r.ready:
	case <-r.done:
		return fmt.Errorf("container %s has stopped", id)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	spec, err := execSpec(r, process.Meta)
	if err != nil {
		return err
	}
	io, err := openStreams(process)
	if err != nil {
		return err
	}
	defer io.close()
	p, err := r.task.Exec(ctx, container.ExecConfig{
		Process: spec, ExecPath: e.opts.ExecPath, Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Console: io.console,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	wait := io.forward(process)
	status, err := follow(ctx, process.Signal, p)
	if err != nil {
		return err
	}
	wait()
	return result(ctx, code(status), nil, process.Meta.ValidExitCodes)
}

// execSpec is the step's process with what meta says in its place.
func execSpec(r *running, meta executor.Meta) (*specs.Process, error) {
	base := r.task.Spec()
	if base == nil || base.Process == nil {
		return nil, errors.New("the container has no specification")
	}
	p := *base.Process
	p.Args, p.Terminal = meta.Args, meta.Tty
	if meta.User != "" {
		who, _, err := runspec.User(r.rootfs, meta.User, nil)
		if err != nil {
			return nil, err
		}
		p.User = who
	}
	if meta.Cwd != "" {
		p.Cwd = meta.Cwd
	}
	if len(meta.Env) > 0 {
		p.Env = meta.Env
	}
	return &p, nil
}

// streams are a process's, as files: its own ends, and those of this side; or the
// terminal that it gets in its container.
type streams struct {
	stdin, stdout, stderr *os.File // the process's
	in, out, err          *os.File // this side's
	master                *os.File
}

// console is container.Config's.
func (s *streams) console(master *os.File) error {
	s.master = master
	return nil
}

func openStreams(p executor.ProcessInfo) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if p.Meta.Tty {
		return s, nil
	}
	if p.Stdin != nil {
		if s.stdin, s.in, err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	if s.out, s.stdout, err = os.Pipe(); err != nil {
		return nil, err
	}
	if s.err, s.stderr, err = os.Pipe(); err != nil {
		return nil, err
	}
	return s, nil
}

// forward copies between the files and p's streams. The function it returns waits
// for the end of the output; call it when the process has ended.
func (s *streams) forward(p executor.ProcessInfo) (wait func()) {
	for _, f := range []**os.File{&s.stdin, &s.stdout, &s.stderr} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	var output sync.WaitGroup
	in, out := s.in, s.out
	if s.master != nil {
		in, out = s.master, s.master
		ended := make(chan struct{})
		output.Go(func() { s.resize(p.Resize, ended) })
		defer func() { stop := wait; wait = func() { close(ended); stop() } }()
	}
	if p.Stdin != nil {
		// It ends with its source, which is closed with the process.
		go func() {
			_, _ = io.Copy(in, p.Stdin)
			if s.in != nil {
				in.Close()
			}
		}()
	}
	copyOut := func(to io.Writer, from *os.File) {
		if to == nil {
			to = io.Discard
		}
		output.Go(func() { _, _ = io.Copy(to, from) })
	}
	copyOut(p.Stdout, out)
	if s.err != nil {
		copyOut(p.Stderr, s.err)
	}
	return func() {
		if p.Stdin != nil {
			p.Stdin.Close()
		}
		output.Wait()
	}
}

func (s *streams) resize(sizes <-chan executor.WinSize, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = pty.Setsize(s.master, &pty.Winsize{Rows: uint16(size.Rows), Cols: uint16(size.Cols)})
		case <-ended:
			return
		}
	}
}

func (s *streams) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr, s.in, s.out, s.err, s.master} {
		if f != nil {
			f.Close()
		}
	}
}
