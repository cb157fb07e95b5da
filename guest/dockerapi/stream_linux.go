package dockerapi

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/engine/builds"
	"github.com/berthvm/berth/guest/engine/stdio"
)

// frame appends a piece of output with the header of the multiplexed stream.
func frame(b []byte, stream stdio.Stream, p []byte) []byte {
	b = append(b, byte(stream), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	return append(b, p...)
}

// streamType is the content type of output.
func (c *call) streamType(tty bool) string {
	if !tty && c.version >= 42 {
		return types.MediaTypeMultiplexedStream
	}
	return types.MediaTypeRawStream
}

// hijacked is a connection that was taken from HTTP.
type hijacked struct {
	net.Conn
	early []byte // what the client sent before
	// began is when the answer's head was sent, for the first of what follows.
	began time.Time
	first sync.Once
	// gone is called when the client has left, which is more than having no more
	// input. watch joins what looks out for that.
	gone  func()
	watch sync.WaitGroup
	once  sync.Once
}

// Read reads the client's input. With its end, the client is watched.
func (h *hijacked) Read(p []byte) (int, error) {
	if len(h.early) > 0 {
		n := copy(p, h.early)
		h.early = h.early[n:]
		return n, nil
	}
	n, err := h.Conn.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		h.once.Do(func() { h.watch.Go(h.hangUp) })
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		h.gone()
	}
	return n, err
}

// headAlone is how long the head of an answer has to itself. Clients written in
// Python lose output that they read together with it, and an engine that takes
// longer to run a program never shows them any.
const headAlone = 10 * time.Millisecond

// Write writes output for the client.
func (h *hijacked) Write(p []byte) (int, error) {
	h.first.Do(func() { time.Sleep(headAlone - time.Since(h.began)) })
	return h.Conn.Write(p)
}

// ignore reads and drops the input of a client from which none is wanted.
func (h *hijacked) ignore() {
	h.watch.Go(func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{h}) })
}

// hangUp waits in the poller until the client has closed its end altogether, or
// the connection is interrupted.
func (h *hijacked) hangUp() {
	sc, ok := h.Conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	if raw.Read(func(fd uintptr) bool { return closedByPeer(int(fd)) }) == nil {
		h.gone()
	}
}

// closedByPeer says whether writing to a stream whose input has ended is in vain.
func closedByPeer(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(p, 0); err == nil && n == 1 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		return true
	}
	// A vsock stream has no hang-up, but refuses even an empty message.
	return unix.Send(fd, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) == unix.EPIPE
}

// interrupt makes a Read return.
func (h *hijacked) interrupt() { _ = h.SetReadDeadline(time.Unix(1, 0)) }

// hijack takes the connection. With an Upgrade the answer is 101, otherwise, as
// old clients want it, 200.
func (c *call) hijack(tty bool, gone func()) (*hijacked, error) {
	if c.ContentLength > 0 { // some clients repeat their parameters there
		_, _ = io.Copy(io.Discard, io.LimitReader(c.Body, maxBody))
	}
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	var b strings.Builder
	if up := c.Header.Get("Upgrade"); up != "" {
		fmt.Fprintf(&b, "HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n", c.streamType(tty))
	} else {
		fmt.Fprintf(&b, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n", types.MediaTypeRawStream)
	}
	for _, name := range []string{"Server", "Api-Version", "Docker-Experimental", "Ostype"} {
		fmt.Fprintf(&b, "%s: %s\r\n", name, c.w.Header().Get(name))
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		conn.Close()
		return nil, errBegun
	}
	// The buffer must be emptied and left: a read through it that meets the end
	// of the client's input cancels the request, which has output to come.
	early := make([]byte, rw.Reader.Buffered())
	if _, err := io.ReadFull(rw.Reader, early); err != nil {
		conn.Close()
		return nil, errBegun
	}
	if len(c.TransferEncoding) > 0 {
		early = bytes.TrimPrefix(early, []byte("0\r\n\r\n")) // a body without anything
	}
	return &hijacked{Conn: conn, early: early, gone: gone, began: time.Now()}, nil
}

// finish ends a hijacked stream so that the client gets everything: its own end
// is told first.
func (h *hijacked) finish() {
	h.interrupt()
	h.watch.Wait()
	if half, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	h.Close()
}

// output returns the function that writes a process's output to w.
func output(w io.Writer, tty bool) func(stdio.Stream, []byte) error {
	var buf []byte
	return func(stream stdio.Stream, p []byte) error {
		if tty {
			_, err := w.Write(p)
			return err
		}
		buf = frame(buf[:0], stream, p)
		_, err := w.Write(buf)
		if cap(buf) > 64<<10 {
			buf = nil
		}
		return err
	}
}

// progress is a stream of JSON messages, begun by the first.
type progress struct {
	c  *call
	mu sync.Mutex
	on bool
}

// message is jsonstream.Message with the field that older clients look for.
type message struct {
	jsonstream.Message
	ErrorText string `json:"error,omitempty"`
}

func (p *progress) report(m jsonstream.Message) { p.write(message{Message: m}) }

func (p *progress) write(m message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.on {
		p.on = true
		p.c.w.Header().Set("Content-Type", "application/json")
		p.c.w.WriteHeader(http.StatusOK)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return
	}
	_, _ = p.c.w.Write(append(body, '\r', '\n'))
	_ = http.NewResponseController(p.c.w).Flush()
}

// fail tells an error as the last of the progress.
func (p *progress) fail(err error) {
	detail := &jsonstream.Error{Message: err.Error()}
	if step := (*builds.ExitError)(nil); errors.As(err, &step) {
		detail.Code = step.Code // which is the client's exit code
	}
	p.write(message{Message: jsonstream.Message{Error: detail}, ErrorText: err.Error()})
}

// end finishes the stream. An error is an answer of its own when nothing was
// written yet, and the last message otherwise.
func (p *progress) end(err error) error {
	p.mu.Lock()
	on := p.on
	p.mu.Unlock()
	switch {
	case err != nil && !on:
		return err
	case err != nil:
		p.fail(err)
	case !on:
		p.c.w.Header().Set("Content-Type", "application/json")
		return p.c.done(http.StatusOK)
	}
	return nil
}

// flusher writes through to the client at once.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}
