package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watchable makes the runtime's poller watch a copy of the pidfd, so that waiting
// costs no thread.
func watchable(pidfd *os.File) (*os.File, error) {
	if pidfd == nil {
		return nil, ErrNotRunning
	}
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitReadable calls try whenever the process may have ended, until it is true.
func awaitReadable(ctx context.Context, pidfd *os.File, try func(fd int) bool) error {
	f, err := watchable(pidfd)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = rc.Read(func(fd uintptr) bool { return try(int(fd)) })
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// waitFor reaps a child.
func waitFor(ctx context.Context, pidfd *os.File) (syscall.WaitStatus, error) {
	var ws syscall.WaitStatus
	var werr error
	err := awaitReadable(ctx, pidfd, func(fd int) bool {
		var info unix.Siginfo
		for {
			werr = unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG, nil)
			if werr != unix.EINTR {
				break
			}
		}
		if werr == unix.EAGAIN || werr == nil && info.Signo == 0 {
			return false
		}
		ws = exitStatus(&info)
		return true
	})
	if err == nil {
		err = werr
	}
	if errors.Is(err, unix.ECHILD) {
		err = fmt.Errorf("not a child of this process: %w", err)
	}
	return ws, err
}

// awaitExit waits until the process has ended, and reaps it if it is a child.
func awaitExit(ctx context.Context, pidfd *os.File) error {
	if pidfd == nil {
		return nil
	}
	err := awaitReadable(ctx, pidfd, func(fd int) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err != nil && err != unix.EINTR || n > 0
	})
	if err == nil {
		var info unix.Siginfo
		_ = unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, unix.WEXITED|unix.WNOHANG, nil)
	}
	return err
}
