package initproc

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// scheduling sets what needs privileges over the processor.
func (p *process) scheduling() error {
	pr := &p.o.Process
	if len(pr.Sched) > 0 {
		_, _, errno := syscall.RawSyscall(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&pr.Sched[0])), 0)
		if errno != 0 {
			return failed("process.scheduler", errno)
		}
	}
	if pr.IOPriority >= 0 {
		const whoProcess = 1
		if _, _, errno := syscall.RawSyscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(pr.IOPriority)); errno != 0 {
			return failed("process.ioPriority", errno)
		}
	}
	if pr.MemPolicy >= 0 {
		var mask *byte
		if len(pr.MemNodes) > 0 {
			mask = &pr.MemNodes[0]
		}
		_, _, errno := syscall.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(pr.MemPolicy), uintptr(unsafe.Pointer(mask)), uintptr(len(pr.MemNodes)*8))
		if errno != 0 {
			return failed("linux.memoryPolicy", errno)
		}
	}
	if len(pr.FinalCPUs) > 0 {
		_, _, errno := syscall.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(pr.FinalCPUs)), uintptr(unsafe.Pointer(&pr.FinalCPUs[0])))
		if errno != 0 {
			return failed("process.execCPUAffinity", errno)
		}
	}
	return nil
}

// credentials makes the process the user it shall be. It uses raw system calls:
// only this thread counts, and the library's would change all threads in step.
func (p *process) credentials() error {
	pr := &p.o.Process
	if err := p.chdirEarly(); err != nil {
		return err
	}
	if err := dropBounding(pr.Bounding); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return failed("keep capabilities", err)
	}
	if err := setUser(pr); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return failed("drop capabilities", err)
	}
	const admin = 1 << unix.CAP_SYS_ADMIN
	p.extraCaps = len(pr.Seccomp) > 0 && !pr.NoNewPrivs && pr.Permitted&pr.Effective&admin == 0
	if p.extraCaps {
		// Loading a filter without no_new_privs takes CAP_SYS_ADMIN.
		if err := capset(pr.Effective|admin, pr.Permitted|admin, pr.Inheritable); err != nil {
			return failed("process.capabilities", err)
		}
	} else if err := capset(pr.Effective, pr.Permitted, pr.Inheritable); err != nil {
		return failed("process.capabilities", err)
	}
	for c := range uintptr(64) {
		if pr.Amb>>c&1 == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return failed("process.capabilities.ambient: "+strconv.Itoa(int(c)), err)
		}
	}
	if pr.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return failed("process.noNewPrivileges", err)
		}
	}
	if pr.Umask >= 0 {
		unix.Umask(pr.Umask)
	} else {
		unix.Umask(0o022)
	}
	return p.chdir()
}

func dropBounding(keep uint64) error {
	for c := range uintptr(64) {
		if keep>>c&1 != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			return nil // beyond the kernel's last capability
		}
		if err != nil {
			return failed("process.capabilities.bounding", err)
		}
	}
	return nil
}

func setUser(pr *order.Process) error {
	var groups *uint32
	if len(pr.Groups) > 0 {
		groups = &pr.Groups[0]
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(pr.Groups)), uintptr(unsafe.Pointer(groups)), 0)
	if errno != 0 && !(errno == unix.EPERM && len(pr.Groups) == 0) {
		return failed("process.user.additionalGids", errno)
	}
	gid, uid := uintptr(pr.GID), uintptr(pr.UID)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return failed("process.user.gid: "+strconv.Itoa(int(pr.GID)), errno)
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return failed("process.user.uid: "+strconv.Itoa(int(pr.UID)), errno)
	}
	return nil
}

func capset(effective, permitted, inheritable uint64) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// chdirEarly makes a missing working directory, as docker's users expect, while
// the process may.
func (p *process) chdirEarly() error {
	cwd := p.o.Process.Cwd
	if unix.Chdir(cwd) == unix.ENOENT && !p.o.Exec {
		fd, err := p.target(cwd, true)
		if err != nil {
			return failed("process.cwd: "+cwd, err)
		}
		unix.Close(fd)
	}
	return nil
}

// chdir enters the working directory as the user, or else stays where chdirEarly
// got as root; and makes sure that it lies inside the container.
func (p *process) chdir() error {
	cwd := p.o.Process.Cwd
	if err := unix.Chdir(cwd); err != nil {
		var at [unix.PathMax]byte
		n, gerr := unix.Getcwd(at[:])
		if err != unix.EACCES || gerr != nil || string(at[:max(n-1, 0)]) != cwd {
			return failed("process.cwd: "+cwd, err)
		}
	}
	var at [unix.PathMax]byte
	n, err := unix.Getcwd(at[:])
	if err != nil {
		return failed("process.cwd: "+cwd, err)
	}
	if n < 1 || at[0] != '/' {
		return &failure{what: "process.cwd: " + cwd + " is outside the container"}
	}
	return nil
}

// find looks for the program as the user, before the start: a container whose
// program does not exist is not created.
func (p *process) find() error {
	name := p.o.Process.Args[0]
	if name == "" {
		return &failure{`exec: ""`, unix.ENOENT, true}
	}
	for i := range name {
		if name[i] == '/' {
			p.path = name
			return program(name, executable(name))
		}
	}
	reason := error(unix.ENOENT)
	for _, dir := range split2(lookupEnv(p.o.Process.Env, "PATH"), ':') {
		if dir == "" {
			dir = "."
		}
		path := join(dir, name)
		err := executable(path)
		if err == nil {
			p.path = path
			return nil
		}
		if err == unix.EACCES {
			reason = err
		}
	}
	if reason == unix.ENOENT {
		return &failure{"exec: " + strconv.Quote(name) + ": executable file not found in $PATH", unix.ENOENT, true}
	}
	return program(name, reason)
}

func program(name string, err error) error {
	if err == nil {
		return nil
	}
	errno, _ := err.(syscall.Errno)
	return &failure{"exec: " + strconv.Quote(name), errno, true}
}

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EACCES
	}
	return unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

func lookupEnv(env []string, key string) string {
	for _, kv := range env {
		if len(kv) > len(key) && kv[:len(key)] == key && kv[len(key)] == '=' {
			return kv[len(key)+1:]
		}
	}
	return ""
}

func split2(s string, sep byte) []string {
	var parts []string
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == sep {
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return parts
}

// exec becomes the user's program.
func (p *process) exec() error {
	pr := &p.o.Process
	for i := range p.o.StartHooks {
		if err := runHook(&p.o.StartHooks[i]); err != nil {
			return failed("hooks.startContainer", err)
		}
	}
	argv, err := syscall.SlicePtrFromStrings(pr.Args)
	if err != nil {
		return failed("process.args", err)
	}
	envv, err := syscall.SlicePtrFromStrings(p.environment())
	if err != nil {
		return failed("process.env", err)
	}
	path, err := syscall.BytePtrFromString(p.path)
	if err != nil {
		return failed("process.args", err)
	}
	if err := p.keepFiles(); err != nil {
		return err
	}
	if err := p.limit(); err != nil {
		return err
	}
	if pr.Personality >= 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_PERSONALITY, uintptr(pr.Personality), 0, 0); errno != 0 {
			return failed("linux.personality", errno)
		}
	}
	if err := p.say(order.Going); err != nil {
		return err
	}
	if err := p.pending(0); err != nil {
		return err
	}
	if err := p.loadFilter(); err != nil {
		return err
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])))
	return program(pr.Args[0], errno)
}

// pending sets the size of the file that says whether the program is still to be
// executed: no engine may be there any more to be told.
func (p *process) pending(size int64) error {
	fd := p.file(p.o.Pending)
	if fd == order.None {
		return nil
	}
	return failed("note the start", unix.Ftruncate(fd, size))
}

// limit sets the resource limits, as late as possible: they are the program's, and
// the Go runtime could not live with all of them.
func (p *process) limit() error {
	for _, r := range p.o.Process.Rlimits {
		lim := unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(r.Kind), uintptr(unsafe.Pointer(&lim)), 0, 0, 0)
		if errno != 0 {
			return failed("process.rlimits: limit "+strconv.Itoa(r.Kind), errno)
		}
	}
	return nil
}

// keepFiles arranges the program's descriptors and marks all others to be closed,
// whoever opened them.
func (p *process) keepFiles() error {
	kept := 3 + p.o.ExtraCount
	if p.o.ExtraCount > 0 {
		// First out of the way of the numbers they get, then there.
		move := func(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, kept) }
		var err error
		if p.control, err = move(p.control); err != nil {
			return failed("move the control socket", err)
		}
		if i := p.o.Pending; p.file(i) != order.None {
			if p.files[i], err = move(p.files[i]); err != nil {
				return failed("move the note of the start", err)
			}
		}
		moved := make([]int, p.o.ExtraCount)
		for i := range moved {
			if moved[i], err = move(p.file(p.o.Extra + i)); err != nil {
				return failed("pass descriptor "+strconv.Itoa(3+i), err)
			}
		}
		for i, fd := range moved {
			if err := unix.Dup3(fd, 3+i, 0); err != nil {
				return failed("pass descriptor "+strconv.Itoa(3+i), err)
			}
		}
	}
	return failed("close descriptors", unix.CloseRange(uint(kept), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC))
}

func (p *process) loadFilter() error {
	pr := &p.o.Process
	if len(pr.Seccomp) > 0 {
		prog := unix.SockFprog{
			Len:    uint16(len(pr.Seccomp) / 8),
			Filter: (*unix.SockFilter)(unsafe.Pointer(&pr.Seccomp[0])),
		}
		const setModeFilter = 1
		_, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, setModeFilter, uintptr(pr.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
		if errno != 0 {
			return failed("linux.seccomp: load the filter", errno)
		}
	}
	if p.extraCaps {
		if err := capset(pr.Effective, pr.Permitted, pr.Inheritable); err != nil {
			return failed("process.capabilities (does the seccomp filter forbid capset?)", err)
		}
	}
	return nil
}

// environment adds HOME, which the runtime has to when the specification does not.
func (p *process) environment() []string {
	env := p.o.Process.Env
	for _, kv := range env {
		if len(kv) >= 5 && kv[:5] == "HOME=" {
			return env
		}
	}
	return append(env[:len(env):len(env)], "HOME="+p.home())
}
