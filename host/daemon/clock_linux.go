package daemon

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// watchClock calls jumped whenever this host's clock was set or the host has
// slept, until the returned function is called. The kernel tells: nothing polls.
func watchClock(jumped func()) (stop func(), err error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	arm := func() error {
		// It never fires, but it is canceled when the clock does not go on as it did.
		never := &unix.ItimerSpec{Value: unix.Timespec{Sec: 1 << 33}}
		err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, never, nil)
		return os.NewSyscallError("timerfd_settime", err)
	}
	if err := arm(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var buf [8]byte
			_, err := f.Read(buf[:])
			if !errors.Is(err, unix.ECANCELED) || arm() != nil {
				return
			}
			jumped()
		}
	}()
	return func() {
		f.Close()
		<-done
	}, nil
}
