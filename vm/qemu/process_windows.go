package qemu

import (
	"errors"
	"io"
	"log/slog"
	"syscall"
	"time"

	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm/internal/job"
)

func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		HideWindow:    true,
		CreationFlags: windows.CREATE_NEW_PROCESS_GROUP, // a Ctrl-C is not QEMU's affair
	}
}

// leash puts QEMU into a job that ends with this process.
func leash(pid int) (io.Closer, error) {
	j, err := job.New()
	if err != nil {
		return nil, err
	}
	if err := j.Add(pid); err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

// startOf says when a process was started, in nanoseconds since 1970.
func startOf(pid int) (uint64, error) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(h)
	return started(h)
}

func started(h windows.Handle) (uint64, error) {
	var created, exited, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(h, &created, &exited, &kernel, &user); err != nil {
		return 0, err
	}
	return uint64(created.Nanoseconds()), nil
}

// bootID is empty: a start time is of the calendar, which no later process shares.
func bootID() string { return "" }

// kill ends the process if it is still the one that was recorded, and waits.
func (r record) kill(log *slog.Logger) error {
	const rights = windows.PROCESS_TERMINATE | windows.PROCESS_QUERY_LIMITED_INFORMATION | windows.SYNCHRONIZE
	h, err := windows.OpenProcess(rights, false, uint32(r.PID))
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return nil // there is none
	} else if err != nil {
		return err
	}
	defer windows.CloseHandle(h) // until then the number is not another process's
	if start, err := started(h); err != nil || start != r.Start {
		return nil
	}
	log.Warn("ending QEMU of an earlier run", "pid", r.PID)
	// One that is ending already refuses.
	terminate := windows.TerminateProcess(h, 1)
	event, err := windows.WaitForSingleObject(h, uint32(dieWithin/time.Millisecond))
	switch {
	case err != nil:
		return errors.Join(terminate, err)
	case event != windows.WAIT_OBJECT_0:
		return errors.Join(terminate, errors.New("it does not end although it was killed"))
	}
	return nil
}
