package ninep

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hugelgupf/p9/linux"
)

const (
	// maxMessage is what a message may have before a size is agreed upon, in bytes,
	// and so all that the library takes.
	maxMessage = 1 << 20
	// maxWaiting is how many requests are served at once: the library starts a
	// goroutine for each, and would do so for a guest that reads no answers.
	maxWaiting = 128

	// settle is how long the end of a connection is held back.
	settle = 50 * time.Millisecond

	headSize  = 7        // size, type, tag
	keepReply = 16 << 10 // the largest buffer that is kept for the next answer

	typeError       = 7
	typeXattrWalk   = 30
	typeXattrCreate = 32
	typeAttach      = 104

	noFID, noUser = 1<<32 - 1, 1<<32 - 1
)

// gate is the connection as the library sees it. It lets through so many requests
// only as have been answered, tells who attaches, which the library does not, and
// refuses extended attributes, after which the library would close the file.
type gate struct {
	conn  net.Conn
	in    *bufio.Reader
	slots chan struct{}
	users chan uint32 // of attaches: each is taken before the next request is read
	done  chan struct{}
	once  sync.Once

	// Reads are serial, and so are writes.
	left    []byte // of the request that is being read
	body    int    // what follows left of that request, unread
	pending bool   // an attach has not been taken yet
	taken   chan struct{}
	reply   []byte // the pieces of an answer

	writing sync.Mutex // one answer at a time
}

func newGate(conn net.Conn) *gate {
	return &gate{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), slots: make(chan struct{}, maxWaiting),
		users: make(chan uint32, 1), taken: make(chan struct{}, 1), done: make(chan struct{})}
}

// attached is called by each attach, and says for whom it is.
func (g *gate) attached() uint32 {
	user := <-g.users
	g.taken <- struct{}{}
	return user
}

// Read implements io.Reader.
func (g *gate) Read(p []byte) (int, error) {
	if len(g.left) == 0 && g.body == 0 {
		if err := g.next(); err != nil {
			// The library would not wait for a goroutine that it has started and that
			// has not run yet.
			time.Sleep(settle)
			return 0, err
		}
	}
	if len(g.left) > 0 {
		n := copy(p, g.left)
		g.left = g.left[n:]
		return n, nil
	}
	n, err := g.in.Read(p[:min(len(p), g.body)])
	g.body -= n
	return n, err
}

// next lets the next request in.
func (g *gate) next() error {
	if g.pending {
		select {
		case <-g.taken:
			g.pending = false
		case <-g.done:
			return io.EOF
		}
	}
	head, size, err := g.peek()
	for ; err == nil && (head[4] == typeXattrWalk || head[4] == typeXattrCreate); head, size, err = g.peek() {
		if err = g.refuse(head, size); err != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	select {
	case g.slots <- struct{}{}:
	case <-g.done:
		return io.EOF
	}
	if head[4] != typeAttach {
		g.body = size
		return nil
	}
	g.left = make([]byte, size)
	if _, err := io.ReadFull(g.in, g.left); err != nil {
		return io.EOF
	}
	user, ok, err := attaching(g.left[headSize:])
	if err != nil {
		return err
	}
	if ok {
		g.users <- user
		g.pending = true
	}
	return nil
}

// peek looks at the next request's head.
func (g *gate) peek() (head []byte, size int, err error) {
	if head, err = g.in.Peek(headSize); err != nil {
		return nil, 0, io.EOF
	}
	if size = int(le32(head)); size < headSize || size > maxMessage {
		return nil, 0, fmt.Errorf("ninep: a request of %d bytes", size)
	}
	return head, size, nil
}

// refuse answers a request itself: not supported.
func (g *gate) refuse(head []byte, size int) error {
	answer := binary.LittleEndian.AppendUint32(nil, headSize+4)
	answer = append(answer, typeError, head[5], head[6])
	answer = binary.LittleEndian.AppendUint32(answer, uint32(linux.ENOTSUP))
	if _, err := g.in.Discard(size); err != nil {
		return io.EOF
	}
	return g.send(answer)
}

func (g *gate) send(answer []byte) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	_, err := g.conn.Write(answer)
	if err != nil {
		g.Close()
	}
	return err
}

var errAttach = errors.New("ninep: a request to attach that is none")

// attaching reads who attaches; not ok when the library refuses it unasked.
func attaching(body []byte) (user uint32, ok bool, err error) {
	if len(body) < 8 {
		return 0, false, errAttach
	}
	auth, rest := le32(body[4:]), body[8:]
	for range 2 { // the names of the user and the tree
		if len(rest) < 2 {
			return 0, false, errAttach
		}
		n := 2 + int(rest[0]) + int(rest[1])<<8
		if len(rest) < n {
			return 0, false, errAttach
		}
		rest = rest[n:]
	}
	if len(rest) != 4 {
		return 0, false, errAttach
	}
	if user = le32(rest); user == noUser {
		user = 0
	}
	return user, auth == noFID, nil
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// Write implements io.Writer. It collects the pieces of an answer, and counts it.
func (g *gate) Write(p []byte) (int, error) {
	g.reply = append(g.reply, p...)
	if len(g.reply) < headSize || len(g.reply) < int(le32(g.reply)) {
		return len(p), nil
	}
	err := g.send(g.reply)
	if cap(g.reply) > keepReply {
		g.reply = nil
	}
	g.reply = g.reply[:0]
	if err != nil {
		return 0, err
	}
	<-g.slots
	return len(p), nil
}

// Close implements io.Closer.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.done) })
	return g.conn.Close()
}
