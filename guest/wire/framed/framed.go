// Package framed gives streams a half-close that their carrier lacks. On macOS
// the host's end of a vsock connection comes from Virtualization.framework, which
// can close it whole only, so there both ends carry the end of each direction
// within the stream. Nothing else uses it: elsewhere vsock closes by halves.
//
// # On the wire
//
// Each direction is a sequence of frames: a length as four bytes, big-endian, and
// so many bytes, at most MaxFrame. A length of 0 ends the direction; nothing may
// follow it. A carrier that ends between two frames was closed whole by the other
// end, which reads as the end of the stream too.
//
// # Who decides
//
// The host's driver does, by the kernel parameter Param: the guest has to know
// before its first stream. Then all streams are framed, whatever their port.
//
// # Boots
//
// Such a host is not told either that the guest has restarted itself. So a guest
// that finds Param opens a stream to BootPort before any other, at each boot, and
// waits until the host ends it: by then the host has forgotten the boot before.
package framed

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
)

const (
	// Param is the kernel parameter that says: the streams are framed.
	Param = "berth.streams=framed"
	// BootPort is the host's port that a guest dials first at each boot.
	BootPort = 9
	// MaxFrame is the most bytes that one frame carries.
	MaxFrame = 64 << 10

	headerSize = 4 // bytes
	readBuffer = 16 << 10
)

// ErrFormat is what Read returns for what cannot be a frame.
var ErrFormat = errors.New("framed: the other end does not send frames")

// Requested tells whether a kernel's command line has Param.
func Requested(cmdline string) bool {
	return slices.Contains(strings.Fields(cmdline), Param)
}

// Conn is one end of a framed stream. It is safe for concurrent use, as a
// net.Conn is. Its deadlines are the carrier's; one that strikes loses nothing.
type Conn struct {
	net.Conn // the carrier

	reading sync.Mutex // guards what follows
	in      *bufio.Reader
	left    int   // bytes of the current frame not yet read
	readErr error // final

	writing sync.Mutex // guards what follows
	buf     []byte     // a frame under construction
	header  []byte     // what is unsent of a header, in front of owed bytes
	owed    int        // bytes of the current frame not yet sent
	ended   bool
}

// New returns a framed stream over carrier, which it owns from now on.
func New(carrier net.Conn) *Conn {
	return &Conn{Conn: carrier, in: bufio.NewReaderSize(carrier, readBuffer)}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.readErr != nil {
		return 0, c.readErr
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.left == 0 {
		if err := c.readHeader(); err != nil {
			return 0, err
		}
	}
	n, err := c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err == io.EOF {
		c.readErr = io.ErrUnexpectedEOF
		err = c.readErr
	}
	return n, err
}

// readHeader reads the next frame's. A deadline may strike within it: what has
// come stays in the buffer.
func (c *Conn) readHeader() error {
	header, err := c.in.Peek(headerSize)
	if err != nil {
		if err == io.EOF {
			if len(header) > 0 {
				err = io.ErrUnexpectedEOF
			}
			c.readErr = err
		}
		return err
	}
	length := binary.BigEndian.Uint32(header)
	switch {
	case length == 0:
		c.readErr = io.EOF
		return io.EOF
	case length > MaxFrame:
		c.readErr = fmt.Errorf("%w: a length of %d bytes", ErrFormat, length)
		return c.readErr
	}
	_, err = c.in.Discard(headerSize)
	c.left = int(length)
	return err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.ended {
		return 0, fmt.Errorf("write after CloseWrite: %w", net.ErrClosed)
	}
	total := 0
	for len(p) > 0 {
		n, err := c.writeSome(p)
		total += n
		p = p[n:]
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// writeSome sends the beginning of p, a whole frame if it can. When it fails
// halfway it remembers what the other end has to get first.
func (c *Conn) writeSome(p []byte) (int, error) {
	if c.owed == 0 {
		c.owed = min(len(p), MaxFrame)
		c.header = binary.BigEndian.AppendUint32(c.header[:0], uint32(c.owed))
	}
	p = p[:min(len(p), c.owed)]
	prefix := len(c.header)
	c.buf = append(append(c.buf[:0], c.header...), p...) // one write: each is a packet
	n, err := c.Conn.Write(c.buf)
	c.header = c.header[min(n, prefix):]
	n = max(n-prefix, 0)
	c.owed -= n
	if cap(c.buf) > MaxFrame/4 && err == nil {
		c.shrink()
	}
	return n, err
}

// shrink gives back a large buffer: a daemon has many streams, most of them idle.
func (c *Conn) shrink() {
	if c.owed == 0 {
		c.buf = nil
	}
}

// CloseWrite ends the sending direction. It waits for writes under way.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.ended {
		return nil
	}
	if c.owed > 0 { // an earlier write has failed halfway
		return errors.Join(errors.New("framed: a frame is incomplete"), c.Conn.Close())
	}
	n, err := c.Conn.Write(make([]byte, headerSize))
	if err != nil {
		if n > 0 {
			err = errors.Join(err, c.Conn.Close()) // no frame can follow a part of a header
		}
		return err
	}
	c.ended = true
	return nil
}

// Listener wraps the streams that another listener accepts.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return New(c), nil
}
