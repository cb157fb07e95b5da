package sshd

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	maxEnv      = 128     // variables a client may set
	maxEnvBytes = 8 << 10 // of one
	// drain is how long output is read after the program has ended: a child in the
	// background may hold the other end for ever.
	drain = 300 * time.Millisecond
)

// session is one channel: requests that prepare, one that starts a program, and
// those that reach it.
type session struct {
	s    *server
	ch   ssh.Channel
	env  []string
	pty  *ptyRequest // nil without one
	mu   sync.Mutex  // over what follows
	proc *os.Process // nil before the start and after the end
	ptmx *os.File
}

// ptyRequest is the payload of "pty-req". Modes are not applied: the defaults of
// a fresh pty are those that a shell expects.
type ptyRequest struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

type windowChange struct{ Columns, Rows, Width, Height uint32 }

func (w windowChange) size() *pty.Winsize {
	clamp := func(n uint32) uint16 { return uint16(min(n, 1<<15-1)) }
	return &pty.Winsize{Cols: clamp(w.Columns), Rows: clamp(w.Rows), X: clamp(w.Width), Y: clamp(w.Height)}
}

func (s *server) session(ctx context.Context, nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	ss := &session{s: s, ch: ch}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := false
	for r := range requests {
		var start func() error
		ok := false
		if started {
			ok = ss.control(r)
		} else {
			ok, start = ss.prepare(ctx, r, &wg)
		}
		if start != nil {
			err := start()
			ok, started = err == nil, err == nil
			if err != nil {
				s.log.Warn("cannot start an SSH session", "error", err)
			}
		}
		if r.WantReply {
			r.Reply(ok, nil)
		}
	}
	// The client has gone, or the program has ended and closed the channel.
	ss.signal(unix.SIGHUP)
}

// prepare handles a request before the start; start is not nil for one that
// starts a program.
func (ss *session) prepare(ctx context.Context, r *ssh.Request, wg *sync.WaitGroup) (ok bool, start func() error) {
	run := func(command string, shell bool) func() error {
		return func() error { return ss.start(ctx, command, shell, wg) }
	}
	switch r.Type {
	case "env":
		return ss.setenv(r.Payload), nil
	case "pty-req":
		p := new(ptyRequest)
		if ssh.Unmarshal(r.Payload, p) != nil || strings.ContainsRune(p.Term, 0) {
			return false, nil
		}
		ss.pty = p
		return true, nil
	case "window-change":
		var w windowChange
		if ss.pty == nil || ssh.Unmarshal(r.Payload, &w) != nil {
			return false, nil
		}
		ss.pty.Columns, ss.pty.Rows, ss.pty.Width, ss.pty.Height = w.Columns, w.Rows, w.Width, w.Height
		return true, nil
	case "shell":
		return false, run("", true)
	case "exec":
		var e struct{ Command string }
		if ssh.Unmarshal(r.Payload, &e) != nil || strings.ContainsRune(e.Command, 0) {
			return false, nil
		}
		return false, run(e.Command, false)
	}
	return false, nil
}

// control handles a request after the start.
func (ss *session) control(r *ssh.Request) bool {
	switch r.Type {
	case "window-change":
		var w windowChange
		ss.mu.Lock()
		defer ss.mu.Unlock()
		return ss.ptmx != nil && ssh.Unmarshal(r.Payload, &w) == nil && pty.Setsize(ss.ptmx, w.size()) == nil
	case "signal":
		var m struct{ Name string }
		if ssh.Unmarshal(r.Payload, &m) != nil {
			return false
		}
		sig := unix.SignalNum("SIG" + m.Name)
		return sig != 0 && ss.signal(sig)
	}
	return false
}

func (ss *session) setenv(payload []byte) bool {
	var v struct{ Name, Value string }
	if ssh.Unmarshal(payload, &v) != nil || len(ss.env) >= maxEnv || len(payload) > maxEnvBytes ||
		v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.ContainsRune(v.Value, 0) {
		return false
	}
	ss.env = append(ss.env, v.Name+"="+v.Value)
	return true
}

// signal sends a signal to the session's processes.
func (ss *session) signal(sig syscall.Signal) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	// The group's leader is not reaped yet, so the number is still its own.
	return ss.proc != nil && unix.Kill(-ss.proc.Pid, sig) == nil
}

// start runs a command, or the shell. The goroutines that it leaves to wg end
// with the program and close the channel.
func (ss *session) start(ctx context.Context, command string, shell bool, wg *sync.WaitGroup) error {
	sh := ss.s.opts.Shell
	cmd := exec.Command(sh, "-c", command)
	if shell {
		cmd = exec.Command(sh)
		cmd.Args[0] = "-" + filepath.Base(sh) // a login shell
	}
	cmd.Dir = ss.s.opts.Dir
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=" + sh,
	}, append(ss.s.opts.Env, ss.env...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var run func() error
	var err error
	if ss.pty != nil {
		run, err = ss.startPTY(cmd, wg)
	} else {
		run, err = ss.startPipes(cmd, wg)
	}
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { ss.signal(unix.SIGHUP); ss.ch.Close() })
	wg.Go(func() {
		defer stop()
		ss.exited(run())
	})
	return nil
}

// startPTY starts cmd on a new pty. run waits for its end and its output's.
func (ss *session) startPTY(cmd *exec.Cmd, input *sync.WaitGroup) (run func() error, err error) {
	cmd.Env = append(cmd.Env, "TERM="+ss.pty.Term)
	cmd.SysProcAttr.Setctty = true
	size := windowChange{ss.pty.Columns, ss.pty.Rows, ss.pty.Width, ss.pty.Height}.size()
	ptmx, err := pty.StartWithAttrs(cmd, size, cmd.SysProcAttr)
	if err != nil {
		return nil, err
	}
	ss.mu.Lock()
	ss.proc, ss.ptmx = cmd.Process, ptmx
	ss.mu.Unlock()
	return func() error {
		var wg sync.WaitGroup
		output := make(chan struct{})
		wg.Go(func() {
			defer close(output)
			io.Copy(ss.ch, ptmx) // ends with EIO when the last process has closed it
		})
		input.Go(func() { io.Copy(ptmx, ss.ch) }) // ends with the channel
		err := ss.wait(cmd)
		select {
		case <-output:
		case <-time.After(drain):
		}
		ss.mu.Lock()
		ss.ptmx = nil
		ss.mu.Unlock()
		ptmx.Close()
		wg.Wait()
		return err
	}, nil
}

// startPipes starts cmd with pipes. run waits for its end and its output's.
func (ss *session) startPipes(cmd *exec.Cmd, wg *sync.WaitGroup) (run func() error, err error) {
	cmd.Stdout, cmd.Stderr = ss.ch, ss.ch.Stderr()
	cmd.WaitDelay = drain
	// Not as cmd.Stdin, for whose end Wait would wait.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ss.mu.Lock()
	ss.proc = cmd.Process
	ss.mu.Unlock()
	wg.Go(func() {
		io.Copy(stdin, ss.ch)
		stdin.Close()
	})
	return func() error { return ss.wait(cmd) }, nil
}

// wait waits for the program, and from then on its number is not used.
func (ss *session) wait(cmd *exec.Cmd) error {
	// The process stays a zombie, with its number, until Wait: so first wait
	// without reaping, then forget the number, then reap.
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	ss.mu.Lock()
	ss.proc = nil
	ss.mu.Unlock()
	return cmd.Wait()
}

// exited tells the client how the program ended, and closes the channel.
func (ss *session) exited(err error) {
	defer ss.ch.Close()
	ss.ch.CloseWrite()
	status := uint32(0)
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
	case errors.As(err, &exit):
		st := exit.Sys().(syscall.WaitStatus)
		if st.Signaled() {
			ss.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Signal            string
				Core              bool
				Message, Language string
			}{strings.TrimPrefix(unix.SignalName(st.Signal()), "SIG"), st.CoreDump(), "", ""}))
			return
		}
		status = uint32(st.ExitStatus())
	default:
		// Its output could not be delivered: the client is going.
		ss.s.log.Debug("an SSH session ended in error", "error", err)
		status = 255
	}
	ss.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
}
