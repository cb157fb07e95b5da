package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// conn is this side of a first process's control socket.
type conn struct {
	f  *os.File
	rc syscall.RawConn
}

func newConn(fd int) (*conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "control socket")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &conn{f, rc}, nil
}

// socketpair makes a conn and the descriptor for the other side.
func socketpair() (*conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create the control socket: %w", err)
	}
	c, err := newConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("create the control socket: %w", err)
	}
	return c, os.NewFile(uintptr(fds[1]), "control socket"), nil
}

func (c *conn) close() {
	if c != nil {
		c.f.Close()
	}
}

// interruptible makes a pending call on c fail when ctx ends. The function it
// returns must be called.
func (c *conn) interruptible(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.f.SetDeadline(time.Unix(1, 0)) })
}

// sendOrder sends o in parts, with files along the first.
func (c *conn) sendOrder(o *order.Order, files []*os.File) error {
	if len(files) > order.MaxFiles {
		return badf("%d files for one process: at most %d can be passed", len(files), order.MaxFiles)
	}
	buf := order.Encode(make([]byte, 1, 16<<10), o)
	if len(buf)-1 > order.MaxSize {
		return badf("the specification is too large: %d bytes", len(buf)-1)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	rights := unix.UnixRights(fds...)
	for {
		n := min(len(buf), 1+order.ChunkSize)
		if buf[0] = order.More; n == len(buf) {
			buf[0] = order.Last
		}
		if err := c.send(buf[:n], rights); err != nil {
			return err
		}
		if n == len(buf) {
			runtime.KeepAlive(files)
			return nil
		}
		buf, rights = buf[n-1:], nil // one byte back, for the flag: it was sent already
	}
}

func (c *conn) send(b, rights []byte) error {
	var err error
	werr := c.rc.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), b, rights, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if werr != nil {
		return werr
	}
	return err
}

func (c *conn) proceed() error {
	_, err := c.f.Write([]byte{order.Proceed})
	return err
}

// setupError is what the first process reports when it gives up.
type setupError struct {
	text  string
	errno syscall.Errno
}

func (e *setupError) Error() string { return e.text }
func (e *setupError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// receive reads one message and the descriptor that came with it. At the end of
// the stream it is io.EOF; a Failed message becomes an error.
func (c *conn) receive() (kind byte, file *os.File, err error) {
	buf, oob := make([]byte, 8<<10), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn int
	rerr := c.rc.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if rerr != nil {
		return 0, nil, rerr
	}
	if err != nil {
		return 0, nil, err
	}
	file, err = passedFile(oob[:oobn])
	switch {
	case err != nil:
		return 0, nil, err
	case n == 0:
		return 0, nil, io.EOF
	case buf[0] != order.Failed:
		return buf[0], file, nil
	case n < 4:
		return 0, nil, errors.New("the container's first process sent a broken report")
	}
	report := &setupError{string(buf[4:n]), syscall.Errno(buf[2]) | syscall.Errno(buf[3])<<8}
	if buf[1] == order.KindProgram {
		return 0, nil, fmt.Errorf("%w: %w", ErrProgram, report)
	}
	return 0, nil, report
}

// passedFile takes the one descriptor out of a control message and closes any
// more, which nobody should have sent.
func passedFile(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var file *os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if file != nil {
				unix.Close(fd)
				continue
			}
			file = os.NewFile(uintptr(fd), "console")
		}
	}
	return file, nil
}
