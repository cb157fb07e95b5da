package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/engine/logfile"
)

// batch is how much is read from a process at once, in bytes: what a pipe holds.
const batch = 64 << 10

// Log takes what a process prints; *logfile.Log is one.
type Log interface {
	Append(entries ...logfile.Entry) error
}

// Drain copies what a process prints on one stream to the log, which may be nil,
// and to the set's readers, until the stream's end or until file is closed. The
// file is a pipe's reading end, or a terminal's master when tty is set, and comes
// from Pollable. Drain returns nil at the end, and an error of the log after which
// it went on.
func Drain(set *Set, stream Stream, file *os.File, tty bool, log Log) error {
	var src source = &reading{file: file}
	if log != nil && !tty {
		raw, err := file.SyscallConn()
		if err != nil {
			return fmt.Errorf("drain %v: %w", stream, err)
		}
		src = &teeing{file: file, raw: raw}
	}
	return drain(set, stream, src, log)
}

// Pollable returns the file in non-blocking mode, so that it waits in the
// runtime's poller and can be closed while in use. It takes over the file.
func Pollable(file *os.File) (*os.File, error) {
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", file.Name(), err)
	}
	fd, derr := -1, error(nil)
	err = raw.Control(func(old uintptr) {
		if fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); derr == nil {
			derr = unix.SetNonblock(fd, true)
		}
	})
	if err = errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", file.Name(), err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// source is where a stream's bytes come from. next returns all that was not
// consumed, the first seen bytes of which the caller knows; it waits until there
// is more, or the end, or no more fits (full). An error means that the source was
// closed on this side: what is left in it is for another to read.
type source interface {
	next(seen int) (data []byte, full, end bool, err error)
	consume(n int)
}

func drain(set *Set, stream Stream, src source, log Log) error {
	var failed error
	seen := 0
	for {
		data, full, end, err := src.next(seen)
		if err != nil {
			return failed
		}
		set.Emit(stream, data[seen:])
		done := len(data)
		if log != nil {
			var entries []logfile.Entry
			entries, done = split(data, stream, end || full)
			if len(entries) > 0 {
				if err := log.Append(entries...); err != nil {
					failed = err
				}
			}
		}
		src.consume(done)
		seen = len(data) - done
		if end {
			return failed
		}
	}
}

// split makes entries of the complete lines in data, and of what is too long to
// be one; of the rest too, when all is set. It returns how many bytes that is.
func split(data []byte, stream Stream, all bool) ([]logfile.Entry, int) {
	var entries []logfile.Entry
	now := time.Now()
	done := 0
	for done < len(data) {
		rest := data[done:]
		n := bytes.IndexByte(rest[:min(len(rest), logfile.MaxLine)], '\n') + 1
		if n == 0 {
			if len(rest) < logfile.MaxLine && !all {
				break
			}
			n = min(len(rest), logfile.MaxLine)
		}
		entries = append(entries, logfile.Entry{Line: rest[:n], Stream: stream.String(), Time: now})
		done += n
	}
	return entries, done
}

// reading takes bytes with read(2): a crash loses what is in buf.
type reading struct {
	file *os.File
	buf  []byte
	off  int
}

func (r *reading) next(int) (data []byte, full, end bool, err error) {
	if r.buf == nil {
		// Small until the process prints: most containers are silent.
		r.buf = make([]byte, 0, 4<<10)
	}
	if r.off > 0 {
		r.buf = append(r.buf[:0], r.buf[r.off:]...)
		r.off = 0
	}
	if len(r.buf) == cap(r.buf) {
		r.buf = append(make([]byte, 0, min(4*cap(r.buf), batch)), r.buf...)
	}
	var n int
	n, err = r.file.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf = r.buf[:len(r.buf)+max(n, 0)]
	// A terminal's end is EIO. What was read is the only copy: it is kept even
	// when the file was closed.
	return r.buf, len(r.buf) == cap(r.buf) && cap(r.buf) >= batch, err != nil, nil
}

func (r *reading) consume(n int) { r.off = n }

// teeing looks at a pipe's bytes without taking them.
type teeing struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// firstLook and lastLook bound how long a pipe is waited for that is not empty. The
// kernel tells of what is written to it, but not of a writer that has filled it and
// waits for room to write the rest, unless it was empty before.
const firstLook, lastLook = time.Millisecond, time.Second

// scratch holds the pipes that bytes are copied through. Only streams that have
// something to say hold one, and only while they look.
var scratch = make(chan [2]int, 4)

func getScratch() (p [2]int, err error) {
	select {
	case p = <-scratch:
		return p, nil
	default:
		err = unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
		return p, err
	}
}

func putScratch(p [2]int) {
	select {
	case scratch <- p:
	default:
		unix.Close(p[0])
		unix.Close(p[1])
	}
}

func (t *teeing) next(seen int) (data []byte, full, end bool, err error) {
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		deadline := time.Time{}
		if seen > 0 {
			deadline = time.Now().Add(wait)
		}
		if err := t.file.SetReadDeadline(deadline); err != nil {
			return nil, false, false, err
		}
		data, full, end, err = t.look(seen)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return data, full, end, err
		}
	}
}

// look is next, until the file's deadline.
func (t *teeing) look(seen int) (data []byte, full, end bool, err error) {
	failed := false
	err = t.raw.Read(func(fd uintptr) bool {
		var ok bool
		if data, ok = t.peek(int(fd)); !ok {
			failed = true
			return true
		}
		if len(data) > seen {
			return true
		}
		// First whether there is a writer, then what is left: one may print and go
		// between any two of these looks.
		end = hungUp(int(fd))
		left, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		if left <= len(data) {
			return end
		}
		end = false
		if data, ok = t.peek(int(fd)); !ok {
			failed = true
			return true
		}
		full = len(data) == seen // it has not come since: it lies in more pieces than a scratch pipe holds
		return len(data) >= seen
	})
	if failed {
		err = errNoPipe
	}
	return data, full, end, err
}

var errNoPipe = errors.New("stdio: cannot make a pipe")

// peek copies what lies in the pipe. ok is false when it cannot.
func (t *teeing) peek(fd int) (data []byte, ok bool) {
	p, err := getScratch()
	if err != nil {
		return nil, false
	}
	defer putScratch(p)
	n, err := unix.Tee(fd, p[1], batch, unix.SPLICE_F_NONBLOCK)
	if err != nil || n <= 0 {
		t.buf = nil
		return nil, err == nil || err == unix.EAGAIN || err == unix.EINTR
	}
	if cap(t.buf) < int(n) {
		t.buf = make([]byte, n)
	}
	t.buf = t.buf[:n]
	for got := 0; got < int(n); {
		m, err := unix.Read(p[0], t.buf[got:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return nil, false
		}
		got += m
	}
	return t.buf, true
}

func (t *teeing) consume(n int) {
	if n == 0 {
		return
	}
	_ = t.raw.Control(func(fd uintptr) {
		for buf := t.buf[:n]; len(buf) > 0; {
			m, err := unix.Read(int(fd), buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil || m == 0 {
				return
			}
			buf = buf[m:]
		}
	})
	if cap(t.buf) > logfile.MaxLine {
		t.buf = nil // an idle container holds no buffer
	}
}

// hungUp says whether nobody has the pipe's other end open.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
}
