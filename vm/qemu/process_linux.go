package qemu

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Setpgid:   true, // a Ctrl-C at the terminal is not QEMU's affair
		Pdeathsig: syscall.SIGKILL,
	}
}

// leash does nothing: the kernel sees to it that QEMU ends with its parent.
func leash(int) (io.Closer, error) { return io.NopCloser(nil), nil }

// startOf says when a process was started, in clock ticks after the host's boot.
func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return startTime(string(stat))
}

// startTime finds the 22nd field of /proc/PID/stat. The second is the program's
// name, which may hold anything.
func startTime(stat string) (uint64, error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, errors.New("unexpected format of /proc/PID/stat")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// kill ends the process if it is still the one that was recorded, and waits.
func (r record) kill(log *slog.Logger) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	// From here on the pid cannot be another process's without the pidfd saying
	// that the process is gone.
	if now, err := identify(r.PID); err != nil || now.Start != r.Start {
		return nil
	}
	log.Warn("ending QEMU of an earlier run", "pid", r.PID)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for end := time.Now().Add(dieWithin); ; {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case time.Now().After(end):
			return errors.New("it does not end although it was killed")
		}
	}
}
