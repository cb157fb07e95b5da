package initproc

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// Main carries out the order that waits on order.ControlFD. It does not return:
// the process becomes the user's program or exits. The caller has locked the main
// goroutine to the main thread (in an init function).
func Main() {
	// No process of the container may trace or look into this one.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	p := &process{control: order.ControlFD, devnull: -1}
	o, err := p.receive()
	if err == nil {
		p.o = o
		err = p.run()
	}
	if err != nil {
		p.fail(err)
	}
	exit(1)
}

// process is the state of the one job.
type process struct {
	o       *order.Order
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
	p.tty = p.o.TTY
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

// enter joins the mount namespace of a running container.
func (p *process) enter() error {
	if p.o.MountNS != order.None {
		// The fs_struct is shared with the runtime's threads; setns needs its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return failed("unshare fs", err)
		}
		if err := unix.Setns(p.o.MountNS, unix.CLONE_NEWNS); err != nil {
			return failed("join the mount namespace", err)
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

// receive reads the order.
func (p *process) receive() (*order.Order, error) {
	buf := make([]byte, 0, 32<<10)
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
		n, err := read(p.control, part)
		if err != nil {
			return nil, failed("read the order", err)
		}
		if n == 0 {
			exit(1) // the engine is gone or has changed its mind
		}
		last := part[0] == order.Last
		buf = append(buf, part[1:n]...) // moves it down over the flag
		if last {
			o, err := order.Decode(buf)
			if err != nil {
				return nil, &failure{what: err.Error(), errno: unix.EPROTO}
			}
			return o, nil
		}
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
	if p.o.StartFD != order.None {
		// The creator may go now; whoever starts the container connects here.
		unix.Close(p.control)
		for {
			r, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(p.o.StartFD), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
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

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
