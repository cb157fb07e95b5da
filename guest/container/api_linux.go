package container

import (
	"errors"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container/seccomp"
)

// Errors a caller may match with errors.Is.
var (
	// ErrExists is returned by Create for an ID that is in use.
	ErrExists = errors.New("container already exists")
	// ErrNotFound is returned by Load for an ID that is not in use.
	ErrNotFound = errors.New("container does not exist")
	// ErrNotRunning is returned by calls that need the container's process.
	ErrNotRunning = errors.New("container is not running")
	// ErrState is returned by calls that the container's status does not allow.
	ErrState = errors.New("wrong container state")
	// ErrConfig is wrapped by every error that lies in the specification.
	ErrConfig = errors.New("invalid configuration")
	// ErrHook is wrapped by what Start and Delete return when they have done their
	// work and only a hook that comes after it has failed: it is a warning.
	ErrHook = errors.New("hook failed")
	// ErrProgram is wrapped when the user's program cannot be executed. The
	// system's own reason is wrapped too: fs.ErrNotExist (docker's exit code
	// 127), fs.ErrPermission and ENOEXEC (126).
	ErrProgram = errors.New("cannot execute the program")
)

// Config describes a container to create. The files are borrowed: the caller
// still owns them and may close its copies once Create has returned.
type Config struct {
	ID       string // [A-Za-z0-9][A-Za-z0-9_.+-]*, at most 1024 bytes
	StateDir string // where containers keep their state; a tmpfs. Each has StateDir/ID
	Bundle   string // for hooks and State; may be empty

	// Spec says what to build. Create does not change it. Paths in it are paths
	// of the caller, except mount destinations and the like.
	Spec *specs.Spec
	// Rootfs is the mounted root file system; it goes before Spec.Root.Path.
	Rootfs string
	// CgroupPath is the cgroup v2 of the container, from the hierarchy's root
	// ("/berth/ID"); it goes before Spec.Linux.CgroupsPath. Empty in both: no
	// cgroup of its own.
	CgroupPath string
	// Seccomp, if set, is used in place of Spec.Linux.Seccomp.
	Seccomp *seccomp.Filter

	// Stdin, Stdout and Stderr of the program; nil is /dev/null. With
	// Spec.Process.Terminal they are not used.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles become descriptors 3, 4, ... of the program.
	ExtraFiles []*os.File
	// Console takes the master of a terminal allocated in the container's own
	// devpts, before Create returns. It owns the file. It is needed when
	// Spec.Process.Terminal is set.
	Console func(master *os.File) error

	// ExecPath is the program berth-exec: "/usr/lib/berth/berth-exec" by default.
	ExecPath string
	// Pool, if set, may have a process ready that has begun already. Where it has,
	// the container's cgroup gets another name than CgroupPath's last element.
	Pool *Pool
	// CloneParent makes the container's process a child of the caller's parent,
	// which reaps it. Wait cannot be used then.
	CloneParent bool
	// Started is called when the process exists and before it does anything: it
	// waits until Started has returned, and dies when it returns an error or the
	// caller dies. The pidfd is borrowed.
	Started func(pid int, pidfd *os.File) error
	// Detached lets Start be called by another process than Create, after Load. A
	// container that is not detached dies with its creator until it was started.
	Detached bool
}

// ExecConfig describes a further process in a running container. Fields that
// Config has too mean the same.
type ExecConfig struct {
	Process *specs.Process
	// Seccomp, if set, replaces the container's own filter for this process.
	Seccomp *seccomp.Filter

	Stdin, Stdout, Stderr *os.File
	ExtraFiles            []*os.File
	Console               func(master *os.File) error

	ExecPath    string
	CloneParent bool
	Started     func(pid int, pidfd *os.File) error

	// Cgroup is a cgroup below the container's own ("", "a/b") to run in.
	Cgroup string
}

// Status is where a container is in its life.
type Status int

// The statuses. Their names (String) are the OCI's, and are what is persisted.
const (
	Creating Status = iota // being built
	Created                // built; Start has not been called
	Running
	Paused
	Stopped // its first process has ended
)

func (s Status) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	}
	return "invalid"
}
