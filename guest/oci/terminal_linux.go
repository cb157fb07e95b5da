package oci

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal connects the caller's terminal to a container's, if it has one.
type terminal struct {
	in, out *os.File
	master  *os.File
	old     *term.State
	copied  chan struct{}
}

// take is the Console function of a container.
func (t *terminal) take(master *os.File) error {
	t.master = master
	t.resize()
	if term.IsTerminal(int(t.in.Fd())) {
		old, err := term.MakeRaw(int(t.in.Fd()))
		if err != nil {
			return fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		t.old = old
	}
	t.copied = make(chan struct{})
	go func() {
		defer close(t.copied)
		_, _ = io.Copy(t.out, master) // ends with EIO when the last process closes it
	}()
	go func() { _, _ = io.Copy(master, t.in) }() // ends with this process
	return nil
}

func (t *terminal) resize() {
	if t.master == nil {
		return
	}
	if size, err := unix.IoctlGetWinsize(int(t.in.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, size)
	}
}

func (t *terminal) close() {
	if t.old != nil {
		_ = term.Restore(int(t.in.Fd()), t.old)
	}
	if t.master != nil {
		t.master.Close()
	}
}

// waiter is a container or a further process.
type waiter interface {
	Wait(ctx context.Context) (syscall.WaitStatus, error)
	Signal(sig syscall.Signal) error
}

// follow forwards signals to the process until it ends and returns its exit code.
func (t *terminal) follow(ctx context.Context, w waiter) (int, error) {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			switch sig := s.(syscall.Signal); sig {
			case unix.SIGWINCH:
				t.resize()
			case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			default:
				_ = w.Signal(sig)
			}
		}
	}()
	ws, err := w.Wait(ctx)
	signal.Stop(signals)
	close(signals)
	<-done
	if err != nil {
		return 1, err
	}
	if t.copied != nil {
		<-t.copied
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// sendConsole sends a terminal's master to the socket at path, as runc's
// --console-socket asks.
func sendConsole(path string, master *os.File) error {
	defer master.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("--console-socket %s: %w", path, err)
	}
	if err := unix.Sendmsg(fd, []byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		return fmt.Errorf("--console-socket %s: %w", path, err)
	}
	return nil
}
