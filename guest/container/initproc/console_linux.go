package initproc

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// console gives a new container its terminal and /dev/console.
func (p *process) console() error {
	if !p.o.NewConsole {
		return nil
	}
	if err := p.newConsole(); err != nil {
		return err
	}
	tree, err := unix.OpenTree(p.tty, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed("clone the terminal for /dev/console", err)
	}
	defer unix.Close(tree)
	target, err := p.target("/dev/console", false)
	if err != nil {
		return failed("/dev/console", err)
	}
	defer unix.Close(target)
	return failed("attach /dev/console", attach(tree, target))
}

// newConsole allocates a terminal in the container's devpts and sends its master
// to the engine.
func (p *process) newConsole() error {
	master, err := p.openPtmx()
	if err != nil {
		return failed("allocate a terminal (is a devpts mounted on /dev/pts?)", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return failed("unlock the terminal", err)
	}
	slave, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return failed("open the terminal", errno)
	}
	p.tty = int(slave)
	if pr := &p.o.Process; pr.Height|pr.Width != 0 {
		size := &unix.Winsize{Row: uint16(pr.Height), Col: uint16(pr.Width)}
		if err := unix.IoctlSetWinsize(p.tty, unix.TIOCSWINSZ, size); err != nil {
			return failed("set the terminal's size", err)
		}
	}
	if err := unix.Fchown(p.tty, int(p.o.Process.UID), -1); err != nil && err != unix.EROFS && err != unix.EPERM && err != unix.EINVAL {
		return failed("give the terminal to the user", err)
	}
	if err := p.sendConsole(master); err != nil {
		return failed("send the terminal to the engine", err)
	}
	unix.Close(master)
	return p.await()
}

// openPtmx opens the multiplexer and makes sure that it is one.
func (p *process) openPtmx() (int, error) {
	how := &unix.OpenHow{Flags: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: inRoot}
	// O_PATH first: opening an arbitrary file for reading can have effects.
	path, err := p.lookup("/dev/pts/ptmx", 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(path)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(path, &fs); err != nil {
		return -1, err
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return -1, &failure{what: "/dev/pts/ptmx is not on a devpts"}
	}
	fd, err := unix.Openat2(p.root, "/dev/pts/ptmx", how)
	if err != nil {
		return -1, err
	}
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		unix.Close(fd)
		return -1, &failure{what: "/dev/pts/ptmx is not on a devpts"}
	}
	return fd, nil
}

func (p *process) sendConsole(fd int) error {
	return unix.Sendmsg(p.control, []byte{order.Console}, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
}

// stdio puts the terminal onto the standard descriptors and makes it the
// controlling one.
func (p *process) stdio() error {
	if !p.o.Process.Terminal {
		return p.chownStdio()
	}
	if p.tty == order.None {
		return &failure{what: "process.terminal: no terminal was given", errno: unix.EINVAL}
	}
	for fd := range 3 {
		if err := unix.Dup3(p.tty, fd, 0); err != nil {
			return failed("attach descriptor "+strconv.Itoa(fd)+" to the terminal", err)
		}
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return failed("make the terminal the controlling one", err)
	}
	return nil
}

// chownStdio lets the program reopen /dev/stdout and its kin: pipes made by the
// engine belong to root.
func (p *process) chownStdio() error {
	pr := &p.o.Process
	if pr.UID == 0 {
		return nil
	}
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return failed("descriptor "+strconv.Itoa(fd), err)
		}
		kind := st.Mode & unix.S_IFMT
		if st.Uid == pr.UID || kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
			continue
		}
		// A pipe from elsewhere may refuse: the program can still use it.
		_, _, _ = syscall.RawSyscall(unix.SYS_FCHOWN, uintptr(fd), uintptr(pr.UID), uintptr(st.Gid))
	}
	return nil
}
