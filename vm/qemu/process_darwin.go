package qemu

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the terminal is not QEMU's affair
}

// leash has a shell kill QEMU when this process is gone.
func leash(pid int) (io.Closer, error) { return newGuard(pid) }

// startOf says when a process was started, in microseconds since 1970.
func startOf(pid int) (uint64, error) {
	p, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return 0, err
	}
	if int(p.Proc.P_pid) != pid {
		return 0, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	at := p.Proc.P_starttime
	return uint64(at.Sec)*1e6 + uint64(at.Usec), nil
}

func bootID() string {
	id, _ := unix.Sysctl("kern.bootsessionuuid")
	return id
}

// kill ends the process if it is still the one that was recorded, and waits.
func (r record) kill(log *slog.Logger) error {
	same := func() bool {
		start, err := startOf(r.PID)
		return err == nil && start == r.Start
	}
	if !same() {
		return nil
	}
	log.Warn("ending QEMU of an earlier run", "pid", r.PID)
	if err := unix.Kill(r.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for end := time.Now().Add(dieWithin); same(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("it does not end although it was killed")
		}
	}
	return nil
}
