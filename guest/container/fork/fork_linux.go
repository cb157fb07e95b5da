package fork

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Command says what to start and how. Descriptors in it are borrowed.
type Command struct {
	Exec  *os.File // the program, opened O_RDONLY or O_PATH
	Argv  []string
	Env   []string
	Files []*os.File // the program's descriptors 0, 1, 2, ...; all others are closed

	// Flags are the namespaces to make: unix.CLONE_NEWNS and so on. CLONE_NEWCGROUP
	// is carried out after the child has arrived in Cgroup. CLONE_NEWTIME is not
	// for here.
	Flags uint64
	// Cgroup is the directory of the cgroup v2 to start in; nil is the caller's.
	Cgroup *os.File
	// Sibling makes the new process a child of the caller's parent.
	Sibling bool

	// TimerSlack is how late the program's timers may be; 0 is the caller's. With
	// PR_SET_TIMERSLACK 0 it goes back to that.
	TimerSlack time.Duration

	// Join are the namespaces to join, in this order, by their descriptors.
	Join []Namespace
	// MapIDs writes the mappings of the new user namespace (unix.CLONE_NEWUSER) of
	// process pid. The child waits for it and becomes user and group 0 there.
	MapIDs func(pid int) error
}

// Namespace is an existing namespace to join, or several of one process when File
// is a pidfd.
type Namespace struct {
	File *os.File
	Type int // unix.CLONE_NEWNET and so on; CLONE_NEWPID stands alone
}

// The child's steps, for its error report.
const (
	stepNone = iota
	stepSync
	stepSetns
	stepUser
	stepCgroupNS
	stepFiles
	stepClose
	stepExec
)

var stepNames = [...]string{
	stepSync:     "wait for the user namespace's mappings",
	stepSetns:    "join namespace",
	stepUser:     "become user 0 of the user namespace",
	stepCgroupNS: "make a cgroup namespace",
	stepFiles:    "arrange file descriptors",
	stepClose:    "close file descriptors",
	stepExec:     "execute the container's first process",
}

// cloneArgs is the kernel's struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal uint64
	stack, stackSize, tls, setTID, setTIDSize     uint64
	cgroup                                        uint64
}

// child is all that the code between clone and exec uses. It is allocated before
// the clone and read there through one pointer.
type child struct {
	clone cloneArgs
	mask  uint64 // the signal mask to give the program

	syncFD  int // -1: do not wait
	syncW   int // the other end: closed in the child, so that its parent's death is an end of file
	setRoot bool
	njoin   int
	join    [16]struct{ fd, kind int }
	unshare uintptr
	slack   uintptr

	nfiles int
	files  *int // moved above nfiles, close-on-exec
	exec   int
	argv   **byte
	envv   **byte
	empty  *byte

	errFD  int
	report [3]int32 // step, index, errno
	pidfd  int32
	one    [1]byte
}

func rawClone3(args, size uintptr) (r1, errno uintptr)

// Start runs c and returns once its exec has succeeded, or with the error that
// prevented it: no process is left then, except one that the caller's parent will
// reap. The pidfd belongs to the caller.
func Start(c Command) (pid int, pidfd *os.File, err error) {
	ch, cleanup, err := prepare(&c)
	defer cleanup()
	if err != nil {
		return 0, nil, err
	}
	var errPipe [2]int
	if err := unix.Pipe2(errPipe[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, fmt.Errorf("create pipe: %w", err)
	}
	defer unix.Close(errPipe[0])
	ch.errFD = errPipe[1]

	if c.MapIDs != nil {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			unix.Close(errPipe[1])
			return 0, nil, fmt.Errorf("create pipe: %w", err)
		}
		ch.syncFD, ch.syncW = p[0], p[1]
	}
	pid, err = cloneJoined(&c, ch)
	unix.Close(errPipe[1])
	if c.MapIDs != nil {
		unix.Close(ch.syncFD)
		if err == nil {
			err = c.MapIDs(pid)
			if err == nil {
				_, err = unix.Write(ch.syncW, []byte{1})
			}
		}
		unix.Close(ch.syncW)
		if err != nil && pid > 0 {
			abandon(pid, int(ch.pidfd), c.Sibling)
			return 0, nil, err
		}
	}
	if err != nil {
		return 0, nil, err
	}
	if err := childError(errPipe[0]); err != nil {
		abandon(pid, int(ch.pidfd), c.Sibling)
		return 0, nil, err
	}
	runtime.KeepAlive(c)
	return pid, os.NewFile(uintptr(ch.pidfd), "pidfd"), nil
}

// abandon ends a child that failed. A sibling is reaped by the caller's parent.
func abandon(pid, pidfd int, sibling bool) {
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	if !sibling {
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	unix.Close(pidfd)
}

// childError reads the child's report; end of file means that exec succeeded.
func childError(fd int) error {
	var report [3]int32
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&report)), unsafe.Sizeof(report))
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("read from the container's first process: %w", err)
		case n == 0:
			return nil
		case n != len(buf) || report[0] <= 0 || int(report[0]) >= len(stepNames):
			return errors.New("the container's first process sent a broken report")
		}
		name := stepNames[report[0]]
		if report[0] == stepSetns {
			name = fmt.Sprintf("%s %d", name, report[1])
		}
		return fmt.Errorf("%s: %w", name, syscall.Errno(report[2]))
	}
}

// prepare allocates everything that the child needs.
func prepare(c *Command) (*child, func(), error) {
	var dups []int
	cleanup := func() {
		for _, fd := range dups {
			unix.Close(fd)
		}
	}
	ch := &child{syncFD: -1, nfiles: len(c.Files), setRoot: c.MapIDs != nil}
	if len(c.Join) > len(ch.join) {
		return nil, cleanup, errors.New("too many namespaces to join")
	}
	// Every descriptor is moved out of the way of the child's final numbers, so
	// that the child can dup2 them in any order.
	move := func(f *os.File) (int, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, len(c.Files)+1)
		if err != nil {
			return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		dups = append(dups, fd)
		return fd, nil
	}
	files := make([]int, len(c.Files)+1)
	for i, f := range c.Files {
		fd, err := move(f)
		if err != nil {
			return nil, cleanup, err
		}
		files[i] = fd
	}
	var err error
	if ch.exec, err = move(c.Exec); err != nil {
		return nil, cleanup, err
	}
	ch.files = &files[0]
	for i, ns := range c.Join {
		ch.join[i].fd, ch.join[i].kind = int(ns.File.Fd()), ns.Type
		ch.setRoot = ch.setRoot || ns.Type&unix.CLONE_NEWUSER != 0
	}
	ch.njoin = len(c.Join)
	argv, err := syscall.SlicePtrFromStrings(c.Argv)
	if err != nil {
		return nil, cleanup, fmt.Errorf("arguments: %w", err)
	}
	envv, err := syscall.SlicePtrFromStrings(c.Env)
	if err != nil {
		return nil, cleanup, fmt.Errorf("environment: %w", err)
	}
	ch.argv, ch.envv, ch.empty = &argv[0], &envv[0], new(byte)

	ch.clone.flags = c.Flags&^unix.CLONE_NEWCGROUP | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND
	ch.unshare = uintptr(c.Flags & unix.CLONE_NEWCGROUP)
	ch.slack = uintptr(c.TimerSlack.Nanoseconds())
	if !c.copiesMemory() {
		ch.clone.flags |= unix.CLONE_VFORK | unix.CLONE_VM
	}
	if c.Sibling {
		ch.clone.flags |= unix.CLONE_PARENT
	} else {
		ch.clone.exitSignal = uint64(unix.SIGCHLD)
	}
	if c.Cgroup != nil {
		ch.clone.flags |= unix.CLONE_INTO_CGROUP
		ch.clone.cgroup = uint64(c.Cgroup.Fd())
	}
	ch.clone.pidfd = uint64(uintptr(unsafe.Pointer(&ch.pidfd)))
	return ch, cleanup, nil
}

func (c *Command) copiesMemory() bool {
	if c.MapIDs != nil {
		return true
	}
	for _, ns := range c.Join {
		if ns.Type&unix.CLONE_NEWTIME != 0 {
			return true
		}
	}
	return false
}

// parentJoins says which namespaces the parent's thread joins for the child: PID
// always, and all but mount and user when the child begins in a new user
// namespace, where it has no rights over them any more.
func (c *Command) parentJoins(kind int) bool {
	if kind == unix.CLONE_NEWPID {
		return true
	}
	return c.MapIDs != nil && (kind == unix.CLONE_NEWNET || kind == unix.CLONE_NEWUTS ||
		kind == unix.CLONE_NEWIPC || kind == unix.CLONE_NEWCGROUP)
}

var nsFiles = map[int]string{
	unix.CLONE_NEWPID: "pid", unix.CLONE_NEWNET: "net", unix.CLONE_NEWUTS: "uts",
	unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWCGROUP: "cgroup",
}

// cloneJoined clones on a thread that has joined what only a parent can, and puts
// the thread back. A thread that cannot be put back is never used again.
func cloneJoined(c *Command, ch *child) (int, error) {
	runtime.LockOSThread()
	var back []Namespace
	restore := func() {
		for _, ns := range back {
			err := unix.Setns(int(ns.File.Fd()), ns.Type)
			ns.File.Close()
			if err != nil {
				return // leaves the thread locked: it ends with its goroutine
			}
		}
		runtime.UnlockOSThread()
	}
	keep := ch.join[:0]
	for i, ns := range c.Join {
		if !c.parentJoins(ns.Type) {
			keep = append(keep, ch.join[i])
			continue
		}
		own, err := os.Open("/proc/thread-self/ns/" + nsFiles[ns.Type])
		if err == nil {
			back = append(back, Namespace{own, ns.Type})
			err = unix.Setns(int(ns.File.Fd()), ns.Type)
		}
		if err != nil {
			restore()
			return 0, fmt.Errorf("join namespace %s: %w", nsFiles[ns.Type], err)
		}
	}
	ch.njoin = len(keep)
	pid, errno := runChild(ch)
	restore()
	if errno != 0 {
		return 0, fmt.Errorf("clone: %w", errno)
	}
	return int(pid), nil
}

// runChild holds all signals off for the moment in which two processes share one
// stack: a handler must not run there.
func runChild(ch *child) (uintptr, syscall.Errno) {
	all := ^uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&ch.mask)), 8, 0, 0)
	pid, errno := forkChild(ch)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&ch.mask)), 0, 8, 0, 0)
	return pid, errno
}

// forkChild returns in the parent only. The child must not return: it shares the
// parent's stack frames above this one. In between nothing may allocate, grow the
// stack or be preempted.
//
//go:noinline
//go:norace
//go:nosplit
//go:nocheckptr
func forkChild(ch *child) (uintptr, syscall.Errno) {
	var (
		i           int
		errno       syscall.Errno
		step, index int32
		fds         *int
	)
	r1, e := rawClone3(uintptr(unsafe.Pointer(&ch.clone)), unsafe.Sizeof(ch.clone))
	if e != 0 || r1 != 0 {
		return r1, syscall.Errno(e)
	}

	// The child from here on.
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&ch.mask)), 0, 8, 0, 0)
	if ch.syncFD >= 0 {
		step = stepSync
		syscall.RawSyscall6(unix.SYS_CLOSE, uintptr(ch.syncW), 0, 0, 0, 0, 0)
		r1, _, errno = syscall.RawSyscall6(unix.SYS_READ, uintptr(ch.syncFD), uintptr(unsafe.Pointer(&ch.one)), 1, 0, 0, 0)
		if errno == 0 && r1 != 1 {
			errno = unix.EPIPE
		}
		if errno != 0 {
			goto fail
		}
	}
	for i = 0; i < ch.njoin; i++ {
		step, index = stepSetns, int32(i)
		_, _, errno = syscall.RawSyscall6(unix.SYS_SETNS, uintptr(ch.join[i].fd), uintptr(ch.join[i].kind), 0, 0, 0, 0)
		if errno != 0 {
			goto fail
		}
	}
	if ch.setRoot {
		step = stepUser
		if _, _, errno = syscall.RawSyscall6(unix.SYS_SETRESGID, 0, 0, 0, 0, 0, 0); errno != 0 {
			goto fail
		}
		if _, _, errno = syscall.RawSyscall6(unix.SYS_SETRESUID, 0, 0, 0, 0, 0, 0); errno != 0 {
			goto fail
		}
	}
	if ch.unshare != 0 {
		step = stepCgroupNS
		if _, _, errno = syscall.RawSyscall6(unix.SYS_UNSHARE, ch.unshare, 0, 0, 0, 0, 0); errno != 0 {
			goto fail
		}
	}
	step = stepFiles
	for i = 0; i < ch.nfiles; i++ {
		fds = (*int)(unsafe.Add(unsafe.Pointer(ch.files), uintptr(i)*unsafe.Sizeof(i)))
		if _, _, errno = syscall.RawSyscall6(unix.SYS_DUP3, uintptr(*fds), uintptr(i), 0, 0, 0, 0); errno != 0 {
			goto fail
		}
	}
	step = stepClose
	if _, _, errno = syscall.RawSyscall6(unix.SYS_CLOSE_RANGE, uintptr(ch.nfiles), ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC, 0, 0, 0); errno != 0 {
		goto fail
	}
	if ch.slack != 0 {
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, ch.slack, 0, 0, 0, 0)
	}
	step = stepExec
	_, _, errno = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(ch.exec), uintptr(unsafe.Pointer(ch.empty)),
		uintptr(unsafe.Pointer(ch.argv)), uintptr(unsafe.Pointer(ch.envv)), unix.AT_EMPTY_PATH, 0)
fail:
	ch.report[0], ch.report[1], ch.report[2] = step, index, int32(errno)
	syscall.RawSyscall6(unix.SYS_WRITE, uintptr(ch.errFD), uintptr(unsafe.Pointer(&ch.report)), unsafe.Sizeof(ch.report), 0, 0, 0)
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 127, 0, 0, 0, 0, 0)
	}
}
