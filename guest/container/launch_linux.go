package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/fork"
	"github.com/berthvm/berth/guest/container/order"
)

// defaultExecPath is where the guest's image has berth-exec.
const defaultExecPath = "/usr/lib/berth/berth-exec"

// monitorSlack is how late the monitor thread of the Go runtime in berth-exec may
// be. It has next to nothing to do there.
const monitorSlack = 10 * time.Millisecond

// launch is one run of berth-exec, up to the point where the program may start.
type launch struct {
	order   *order.Order
	command fork.Command
	warm    *warm // a process that has begun already; nil: clone one

	execPath              string
	stdin, stdout, stderr *os.File
	extra                 []*os.File
	startSocket           *os.File // listening
	pending               *os.File // to be emptied at the start
	mountNS               *os.File
	rootTree              *os.File   // for a warm process
	joins                 []join     // likewise
	trees                 []*os.File // attached to order.Mounts by index in treeOf
	treeOf                []int
	files                 []*os.File // to send with the order

	started func(pid int, pidfd *os.File) error
	forked  func(pid int) error // right after the clone, before started
	hooks   func(pid int) error // when the process asks
	console func(*os.File) error
	ready   func(pid int) error // when the process waits for its start
}

type join struct {
	file *os.File
	kind int
}

// process is a running berth-exec.
type process struct {
	pid   int
	pidfd *os.File
	conn  *conn
}

// run starts berth-exec and leads it until it is ready. On failure it is dead.
func (l *launch) run(ctx context.Context) (process, error) {
	null, err := l.layOut()
	if err != nil {
		return process{}, err
	}
	if null != nil {
		defer null.Close()
	}
	var p process
	if l.warm != nil {
		p, l.warm.process = l.warm.process, process{} // ours now, and ours to end
	} else if p, err = spawn(l.execPath, l.command); err != nil {
		return process{}, err
	}
	if err := l.lead(ctx, p); err != nil {
		p.conn.close()
		kill(p.pid, p.pidfd, l.command.Sibling)
		return process{}, err
	}
	return p, nil
}

// spawn starts berth-exec. It waits for its order.
func spawn(path string, command fork.Command) (process, error) {
	c, child, err := socketpair()
	if err != nil {
		return process{}, err
	}
	defer child.Close() // the process's death must be an end of file here
	image, err := openExec(path)
	if err != nil {
		c.close()
		return process{}, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.close()
		return process{}, err
	}
	defer null.Close()
	command.Exec = image
	command.Argv = []string{"berth-exec"}
	command.TimerSlack = monitorSlack
	// What a crash of berth-exec itself would say belongs to this program's output.
	command.Files = []*os.File{null, null, os.Stderr, child}
	// One processor for the Go runtime, no collections: less to start, fewer threads.
	command.Env = append(command.Env, "GOMAXPROCS=1", "GOGC=off")
	pid, pidfd, err := fork.Start(command)
	if err != nil {
		c.close()
		return process{}, err
	}
	return process{pid, pidfd, c}, nil
}

// layOut lists the files that go with the order and tells the order where they are.
func (l *launch) layOut() (null *os.File, err error) {
	l.files = []*os.File{l.stdin, l.stdout, l.stderr}
	for i := range l.files {
		if l.files[i] != nil && !l.order.Process.Terminal {
			continue
		}
		if null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, err
			}
		}
		l.files[i] = null
	}
	put := func(f *os.File) int {
		if f == nil {
			return order.None
		}
		l.files = append(l.files, f)
		return len(l.files) - 1
	}
	o := l.order
	o.RootTree, o.Start, o.Pending, o.MountNS = put(l.rootTree), put(l.startSocket), put(l.pending), put(l.mountNS)
	for _, j := range l.joins {
		o.Joins = append(o.Joins, order.Join{File: put(j.file), Kind: j.kind})
	}
	for i, tree := range l.trees {
		o.Mounts[l.treeOf[i]].Tree = put(tree)
	}
	o.Extra, o.ExtraCount = len(l.files), len(l.extra)
	l.files = append(l.files, l.extra...)
	return null, nil
}

// lead answers the process until it is ready.
func (l *launch) lead(ctx context.Context, p process) (err error) {
	pid, pidfd, c := p.pid, p.pidfd, p.conn
	stop := c.interruptible(ctx)
	defer stop()
	defer func() {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("the container's first process: %w", context.Cause(ctx))
		}
	}()
	if l.forked != nil {
		if err := l.forked(pid); err != nil {
			return err
		}
	}
	if l.started != nil {
		if err := l.started(pid, pidfd); err != nil {
			return err
		}
	}
	if err := c.sendOrder(l.order, l.files); err != nil {
		return describeExit(pidfd, err)
	}
	for {
		kind, file, err := c.receive()
		if err != nil {
			return describeExit(pidfd, err)
		}
		switch {
		case kind == order.Hooks && l.hooks != nil:
			err = l.hooks(pid)
		case kind == order.Console && file != nil && l.console != nil:
			err = l.console(file)
		case kind == order.Ready:
			if l.ready != nil {
				return l.ready(pid)
			}
			return nil
		default:
			err = fmt.Errorf("the container's first process sent an unexpected message %q", kind)
		}
		if err != nil {
			return err
		}
		if err := c.proceed(); err != nil {
			return describeExit(pidfd, err)
		}
	}
}

// describeExit explains why the socket broke: somebody or something killed the
// process.
func describeExit(pidfd *os.File, err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	// A dying process closes its socket a moment before it can be waited for.
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	_, _ = unix.Poll(poll, 1000)
	var info unix.Siginfo
	const peek = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT
	if werr := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, peek, nil); werr == nil && info.Signo != 0 {
		code, status := childStatus(&info)
		if code != 1 { // CLD_EXITED
			return fmt.Errorf("the container's first process was killed by signal %d (out of memory?) before the program could start", status)
		}
		return fmt.Errorf("the container's first process ended with status %d before the program could start", status)
	}
	return errors.New("the container's first process was killed before the program could start")
}

// kill ends the process and, if it is this one's child, reaps it.
func kill(pid int, pidfd *os.File, sibling bool) {
	_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	if !sibling {
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	pidfd.Close()
}

// images keeps the opened berth-exec, one per path, for the life of this process.
var images struct {
	mu    sync.Mutex
	files map[string]*os.File
}

// openExec opens berth-exec so that no container can write to it: directly from a
// read-only file system, otherwise as a sealed copy in memory (CVE-2019-5736).
func openExec(path string) (*os.File, error) {
	if path == "" {
		path = defaultExecPath
	}
	images.mu.Lock()
	defer images.mu.Unlock()
	if f := images.files[path]; f != nil {
		return f, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the container's first process: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		f.Close()
		return nil, fmt.Errorf("the container's first process: %w", err)
	}
	// The erofs type, and not only a read-only mount, which somebody may change.
	if fs.Type != unix.EROFS_SUPER_MAGIC_V1 {
		sealed, err := seal(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("seal the container's first process: %w", err)
		}
		f = sealed
	}
	if images.files == nil {
		images.files = make(map[string]*os.File)
	}
	images.files[path] = f
	// Between clone and exec the child still is this program: it must not be traced
	// or looked into either.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	return f, nil
}

func seal(from *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate("berth-exec", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("berth-exec", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	w := os.NewFile(uintptr(fd), "berth-exec")
	if _, err := io.Copy(w, from); err != nil {
		w.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		w.Close()
		return nil, err
	}
	// A descriptor open for writing would make exec fail with ETXTBSY.
	defer w.Close()
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

// exitStatus turns a waitid result into the familiar form.
func exitStatus(info *unix.Siginfo) syscall.WaitStatus {
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	code, status := childStatus(info)
	switch code {
	case exited:
		return syscall.WaitStatus(status << 8)
	case dumped:
		return syscall.WaitStatus(status | 0x80)
	}
	return syscall.WaitStatus(status)
}
