package initproc

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// Main carries out the order that comes over order.ControlFD. It does not return:
// the process becomes the user's program or exits. The caller has locked the main
// goroutine to the main thread (in an init function).
func Main() {
	// No process of the container may trace or look into this one.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// The Go runtime's monitor thread, which has been made, may be late: package
	// guest/monitor says why. Not so this thread, and the program.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
	p := &process{control: order.ControlFD, devnull: -1, tty: order.None}
	var err error
	if _, warm := syscall.Getenv(order.Warm); warm {
		err = retreat()
	}
	if err == nil {
		p.o, err = p.receive()
	}
	if err == nil {
		err = p.run()
	}
	if err != nil {
		p.fail(err)
		if p.o != nil {
			_ = p.pending(1)
		}
	}
	exit(1)
}

// process is the state of the one job.
type process struct {
	o       *order.Order
	files   []int // that came with the order
	control int
	root    int // O_PATH descriptor of the container's root
	devnull int // O_PATH descriptor of the machine's own /dev/null
	tty     int
	path    string // of the program

	lateRO    []string // mounts to make read-only when all is in place
	extraCaps bool     // CAP_SYS_ADMIN is kept until the filter is loaded
}

func (p *process) run() error {
	unix.Umask(0)
	for fd := range 3 {
		if err := unix.Dup3(p.file(fd), fd, 0); err != nil {
			return failed("attach descriptor "+strconv.Itoa(fd), err)
		}
	}
	if err := p.common(); err != nil {
		return err
	}
	if p.o.Exec {
		if err := p.enter(); err != nil {
			return err
		}
	} else if err := p.build(); err != nil {
		return err
	}
	if err := p.stdio(); err != nil {
		return err
	}
	if err := p.credentials(); err != nil {
		return err
	}
	if err := p.find(); err != nil {
		return err
	}
	if err := p.ready(); err != nil {
		return err
	}
	return p.exec()
}

// common is what new containers and further processes do alike, with the
// machine's /proc still in sight.
func (p *process) common() error {
	o := p.o
	if o.Keyring != "" {
		if _, err := unix.KeyctlJoinSessionKeyring(o.Keyring); err != nil && err != unix.ENOSYS && err != unix.EDQUOT {
			return failed("join a session keyring", err)
		}
	}
	if _, err := unix.Setsid(); err != nil {
		return failed("setsid", err)
	}
	return p.scheduling()
}

// joinMounts joins another's mount namespace.
func (p *process) joinMounts() error {
	ns := p.file(p.o.MountNS)
	if ns == order.None {
		return nil
	}
	// The fs_struct is shared with the runtime's threads; setns needs its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return failed("unshare fs", err)
	}
	return failed("join the mount namespace", unix.Setns(ns, unix.CLONE_NEWNS))
}

// enter joins the mount namespace of a running container.
func (p *process) enter() error {
	if err := p.joinMounts(); err != nil {
		return err
	}
	if p.root = p.file(p.o.RootTree); p.root != order.None {
		if err := p.changeRoot(); err != nil {
			return err
		}
	}
	var err error
	if p.root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return failed("open the root directory", err)
	}
	if p.o.NewConsole {
		return p.newConsole()
	}
	return nil
}

// file is the descriptor of a file of the order; None for None.
func (p *process) file(i int) int {
	if i < 0 || i >= len(p.files) {
		return order.None
	}
	return p.files[i]
}

// receive reads the order and the descriptors that come with its first part.
func (p *process) receive() (*order.Order, error) {
	buf := make([]byte, 0, order.ChunkSize+1)
	oob := make([]byte, unix.CmsgSpace(4*order.MaxFiles))
	for {
		if cap(buf)-len(buf) < order.ChunkSize+1 {
			if len(buf) > order.MaxSize {
				return nil, failed("read the order", unix.EMSGSIZE)
			}
			bigger := make([]byte, len(buf), 2*cap(buf)+order.ChunkSize+1)
			copy(bigger, buf)
			buf = bigger
		}
		part := buf[len(buf):cap(buf)]
		n, files, err := receiveMessage(p.control, part, oob)
		if err != nil {
			return nil, failed("read the order", err)
		}
		if n == 0 {
			exit(1) // the engine is gone or has changed its mind
		}
		p.files = append(p.files, files...)
		last := part[0] == order.Last
		buf = append(buf, part[1:n]...) // moves it down over the flag
		if last {
			o, err := order.Decode(buf)
			if err != nil {
				return nil, &failure{what: err.Error(), errno: unix.EPROTO}
			}
			if len(p.files) < 3 {
				return nil, &failure{what: "the order came without standard files", errno: unix.EPROTO}
			}
			return o, nil
		}
	}
}

// receiveMessage is recvmsg. A warm process waits here, maybe for days: the Go
// runtime must know that it waits, or its monitor thread would look every 20 ms
// whether to preempt it.
func receiveMessage(fd int, b, oob []byte) (int, []int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: unsafe.SliceData(oob)}
	msg.SetControllen(len(oob))
	for {
		n, _, errno := syscall.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_CMSG_CLOEXEC)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, nil, errno
		}
		if msg.Controllen == 0 {
			return int(n), nil, nil
		}
		if msg.Flags&unix.MSG_CTRUNC != 0 {
			return 0, nil, unix.EMSGSIZE
		}
		messages, err := unix.ParseSocketControlMessage(oob[:msg.Controllen])
		if err != nil || len(messages) != 1 {
			return 0, nil, unix.EPROTO
		}
		files, err := unix.ParseUnixRights(&messages[0])
		return int(n), files, err
	}
}

// await waits for the engine's word. The raw system call keeps the Go runtime from
// starting threads meanwhile, which a tight pids limit would not allow.
func (p *process) await() error {
	var b [1]byte
	n, err := read(p.control, b[:])
	if err != nil {
		return failed("wait for the engine", err)
	}
	if n == 0 || b[0] != order.Proceed {
		exit(1)
	}
	return nil
}

func (p *process) say(kind byte) error {
	b := [1]byte{kind}
	return failed("report to the engine", send(p.control, b[:]))
}

// ready reports that all is prepared and waits for the start.
func (p *process) ready() error {
	if err := p.say(order.Ready); err != nil {
		return err
	}
	if start := p.file(p.o.Start); start != order.None {
		// The creator may go now; whoever starts the container connects here.
		unix.Close(p.control)
		for {
			r, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(start), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				exit(1)
			}
			p.control = int(r)
			break
		}
	}
	return p.await()
}

func (p *process) fail(err error) {
	kind, errno := byte(order.KindSetup), syscall.Errno(0)
	if f, ok := err.(*failure); ok {
		errno = f.errno
		if f.program {
			kind = order.KindProgram
		}
	}
	msg := append([]byte{order.Failed, kind, byte(errno), byte(errno >> 8)}, err.Error()...)
	_ = send(p.control, msg)
}

// failure is an error with the system's reason.
type failure struct {
	what    string
	errno   syscall.Errno
	program bool // it is the user's program that cannot be executed
}

func (f *failure) Error() string {
	if f.errno == 0 {
		return f.what
	}
	return f.what + ": " + f.errno.Error()
}

func failed(what string, err error) error {
	switch e := err.(type) {
	case nil:
		return nil
	case *failure:
		return &failure{what + ": " + e.what, e.errno, e.program}
	case syscall.Errno:
		return &failure{what: what, errno: e}
	}
	return &failure{what: what + ": " + err.Error()}
}

func errnoOf(err error) syscall.Errno {
	switch e := err.(type) {
	case *failure:
		return e.errno
	case syscall.Errno:
		return e
	}
	return 0
}

func read(fd int, b []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}

func send(fd int, b []byte) error {
	for {
		_, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

func exit(code int) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

func writeFile(path, data string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, []byte(data))
	unix.Close(fd)
	if err == nil && n != len(data) {
		err = unix.EIO
	}
	return err
}
