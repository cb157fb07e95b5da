package container

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/fork"
	"github.com/berthvm/berth/guest/container/order"
)

// Process is a process started by Exec. Its methods are safe for concurrent use.
//
// Without CloneParent it must be waited for: the kernel does not let a container's
// first process end as long as there is an unreaped process in its PID namespace.
type Process struct {
	pid   int
	pidfd *os.File
}

// Exec runs a further process in the container. It returns once the kernel has
// accepted its program; otherwise the error wraps ErrProgram. Capabilities that
// cfg.Process does not name at all (nil) are those of the container's program.
func (c *Container) Exec(ctx context.Context, cfg ExecConfig) (*Process, error) {
	p, err := c.exec(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return p, nil
}

func (c *Container) exec(ctx context.Context, cfg *ExecConfig) (*Process, error) {
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	if status != Running && status != Created {
		return nil, fmt.Errorf("it is %s: %w", status, errorFor(status))
	}
	tidy := new(cleanup)
	defer tidy.run()
	o, err := c.execOrder(cfg)
	if err != nil {
		return nil, err
	}
	l := &launch{
		order: o, execPath: cfg.ExecPath, started: cfg.Started, console: cfg.Console,
		stdin: cfg.Stdin, stdout: cfg.Stdout, stderr: cfg.Stderr, extra: cfg.ExtraFiles,
		command: fork.Command{Sibling: cfg.CloneParent},
		forked: func(pid int) error {
			if adj := cfg.Process.OOMScoreAdj; adj != nil {
				err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(*adj)), 0)
				if err != nil {
					return badf("process.oomScoreAdj: %w", err)
				}
			}
			return raiseRlimits(pid, o.Process.Rlimits)
		},
	}
	if err := c.joinAll(l, tidy); err != nil {
		return nil, err
	}
	if err := c.enterGroup(l, cfg.Cgroup, tidy); err != nil {
		return nil, err
	}
	proc, err := l.run(ctx)
	if err != nil {
		return nil, err
	}
	defer proc.conn.close()
	stop := proc.conn.interruptible(ctx)
	defer stop()
	if err := awaitExec(proc.conn, proc.pidfd); err != nil {
		kill(proc.pid, proc.pidfd, cfg.CloneParent)
		return nil, err
	}
	return &Process{proc.pid, proc.pidfd}, nil
}

// threadsNeeded is more than berth-exec has of them.
const threadsNeeded = 16

// enterGroup has the process begin in the container's cgroup; where its limit on
// processes is too tight for a Go program, the process comes in when it is ready
// to give way to the user's.
func (c *Container) enterGroup(l *launch, sub string, tidy *cleanup) error {
	g, err := c.groupFor(sub)
	if g == nil || err != nil {
		return err
	}
	if g.PidsLeft() < threadsNeeded || c.group.PidsLeft() < threadsNeeded {
		l.ready = g.Add
		return nil
	}
	dir, err := g.Open()
	if err != nil {
		return err
	}
	tidy.add(func() { dir.Close() })
	l.command.Cgroup = dir
	return nil
}

func errorFor(s Status) error {
	if s == Stopped {
		return ErrNotRunning
	}
	return ErrState
}

// execOrder checks cfg and makes the order.
func (c *Container) execOrder(cfg *ExecConfig) (*order.Order, error) {
	if cfg.Process == nil {
		return nil, badf("process: missing")
	}
	pr := *cfg.Process
	spec := c.Spec()
	if spec == nil {
		return nil, ErrNotRunning
	}
	if pr.Capabilities == nil && spec.Process != nil {
		pr.Capabilities = spec.Process.Capabilities
	}
	op, err := planProcess(&pr)
	if err != nil {
		return nil, badf("process.%w", err)
	}
	filter := cfg.Seccomp
	if filter == nil {
		if filter, err = loadFilter(c.dir); err != nil {
			return nil, err
		}
	}
	setFilter(&op, filter)
	if pr.Terminal && cfg.Console == nil {
		return nil, badf("process.terminal: nobody takes the terminal (is --console-socket missing?)")
	}
	return &order.Order{
		Exec: true, NewConsole: pr.Terminal, Process: op,
	}, nil
}

// joinAll prepares joining the container's namespaces: most between clone and
// exec, by the first process's pidfd; the PID namespace by the parent's thread; the
// mount namespace by berth-exec, so that the Go runtime starts with the machine's
// /proc in sight and not with one that the container has arranged.
func (c *Container) joinAll(l *launch, tidy *cleanup) error {
	pidfd := c.PIDFD()
	if pidfd == nil {
		return ErrNotRunning
	}
	mnt, err := os.Open("/proc/" + strconv.Itoa(c.PID()) + "/ns/mnt")
	if err != nil {
		return ErrNotRunning
	}
	tidy.add(func() { mnt.Close() })
	if exited(pidfd) { // the number might have been another's when mnt was opened
		return ErrNotRunning
	}
	l.mountNS = mnt
	if guest, _ := isGuest(c.Spec()); guest {
		root, err := os.OpenFile("/proc/"+strconv.Itoa(c.PID())+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil || exited(pidfd) {
			return ErrNotRunning
		}
		tidy.add(func() { root.Close() })
		l.rootTree = root
	}
	flags := 0
	for _, ns := range c.Spec().Linux.Namespaces {
		switch ns.Type {
		case specs.MountNamespace:
		case specs.PIDNamespace:
			l.command.Join = append(l.command.Join, fork.Namespace{File: pidfd, Type: unix.CLONE_NEWPID})
		default:
			flags |= int(cloneFlags[ns.Type])
		}
	}
	if flags != 0 {
		l.command.Join = append(l.command.Join, fork.Namespace{File: pidfd, Type: flags})
	}
	return nil
}

// PID is the process's number in the caller's PID namespace.
func (p *Process) PID() int { return p.pid }

// PIDFD is the process's pidfd, owned by the Process and valid until Close.
func (p *Process) PIDFD() *os.File { return p.pidfd }

// Signal sends sig to the process. It is ErrNotRunning when it has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	return signal(p.pidfd, sig, "process "+strconv.Itoa(p.pid))
}

// Wait reaps the process. It works only without CloneParent, and only once.
func (p *Process) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	ws, err := waitFor(ctx, p.pidfd)
	if err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return ws, nil
}

// Close gives up the Process's descriptor. The process itself lives on. No other
// method may be running or be called afterwards.
func (p *Process) Close() error { return p.pidfd.Close() }
