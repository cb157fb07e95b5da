package job

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Job is a job object. It is safe for concurrent use.
type Job struct{ handle windows.Handle }

// New returns an empty job. The caller closes it.
func New() (*Job, error) {
	h, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a job: %w", err)
	}
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(h, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		windows.CloseHandle(h)
		return nil, fmt.Errorf("have a job end its processes: %w", err)
	}
	return &Job{h}, nil
}

// Add puts a process into the job, which its children will be in, too.
func (j *Job) Add(pid int) error {
	const rights = windows.PROCESS_SET_QUOTA | windows.PROCESS_TERMINATE
	p, err := windows.OpenProcess(rights, false, uint32(pid))
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer windows.CloseHandle(p)
	if err := windows.AssignProcessToJobObject(j.handle, p); err != nil {
		return fmt.Errorf("put process %d into a job: %w", pid, err)
	}
	return nil
}

// Close ends the job's processes.
func (j *Job) Close() error { return windows.CloseHandle(j.handle) }
