package muxed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"syscall"
	"time"
)

// batch is about how many bytes are written to the pipe at a time.
const batch = 64 << 10

// Side is an end of a session.
type Side uint32

// The sides; their values are the parity of their streams' numbers.
const (
	Host  Side = 0
	Guest Side = 1
)

// Session is one end of a pipe after the handshake. It is safe for concurrent use.
type Session struct {
	side   Side
	accept func(*Incoming)
	tasks  sync.WaitGroup
	done   chan struct{} // closed when the session has ended

	mu      sync.Mutex // guards what follows, and the streams'
	err     error      // why it has ended
	streams map[uint32]*Stream
	theirs  int // of them, opened by the other end
	nextID  uint32
	lastID  uint32    // the other end's
	ready   []*Stream // that have something to send, in turn
	refused []uint32
	wake    sync.Cond // ready or refused have grown, or err was set
}

// NewSession starts a session, whose handshake is over: r holds the frames that
// come, and those to be sent are written to w. accept is called for each stream
// that the other end opens, and must not block. The session ends when reading or
// writing fails, and with End; the pipe stays the caller's.
func NewSession(side Side, r *bufio.Reader, w io.Writer, accept func(*Incoming)) *Session {
	s := &Session{side: side, accept: accept, done: make(chan struct{}), streams: map[uint32]*Stream{}, nextID: uint32(side)}
	s.wake.L = &s.mu
	s.tasks.Go(func() { s.End(s.read(r)) })
	s.tasks.Go(func() { s.End(s.write(w)) })
	return s
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session has ended; nil while it has not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// End ends the session, for a reason: its streams break. What blocks on the pipe
// goes on doing so until the caller makes it stop.
func (s *Session) End(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if reason == nil {
		reason = io.ErrClosedPipe
	}
	s.err = reason
	for _, st := range s.streams {
		st.fail(syscall.ECONNRESET)
	}
	s.wake.Broadcast()
	close(s.done)
}

// Wait returns once the session has ended and touches the pipe no more.
func (s *Session) Wait() error {
	s.tasks.Wait()
	return s.Err()
}

// Dial opens a stream to a port of the other end. A port nobody listens on fails
// with ECONNREFUSED, a session that has ended with ECONNRESET.
func (s *Session) Dial(ctx context.Context, port uint32) (*Stream, error) {
	fail := func(err error) (*Stream, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr(port), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fail(syscall.ECONNRESET)
	}
	if s.nextID > math.MaxUint32-2 {
		return fail(syscall.EADDRNOTAVAIL)
	}
	s.nextID += 2
	st := s.newStream(s.nextID, port)
	st.signals |= 1 << kindOpen
	s.enqueue(st)
	stop := context.AfterFunc(ctx, st.wakeAll)
	defer stop()
	for !st.open && st.err == nil && ctx.Err() == nil {
		st.readable.Wait()
	}
	switch {
	case st.open:
		return st, nil
	case st.err != nil:
		return fail(st.err)
	}
	st.abort()
	return fail(ctx.Err())
}

// Incoming is a stream that the other end has opened and waits for. One of its
// methods has to be called, once.
type Incoming struct {
	Port   uint32
	stream *Stream
}

// Accept takes the stream.
func (in *Incoming) Accept() *Stream {
	s := in.stream.s
	s.mu.Lock()
	defer s.mu.Unlock()
	in.stream.open = true
	in.stream.signals |= 1 << kindAccept
	s.enqueue(in.stream)
	return in.stream
}

// Refuse says that nobody listens.
func (in *Incoming) Refuse() {
	s := in.stream.s
	s.mu.Lock()
	defer s.mu.Unlock()
	in.stream.abort()
}

func (s *Session) newStream(id, port uint32) *Stream {
	st := &Stream{s: s, id: id, port: port, credit: Window, granted: Window}
	st.readable.L, st.writable.L = &s.mu, &s.mu
	s.streams[id] = st
	if id&1 != uint32(s.side) {
		s.theirs++
	}
	return st
}

func (s *Session) forget(st *Stream) {
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	if st.id&1 != uint32(s.side) {
		s.theirs--
	}
	st.stopTimers()
}

// enqueue has the writer look at st. The caller holds mu.
func (s *Session) enqueue(st *Stream) {
	if !st.queued {
		st.queued = true
		s.ready = append(s.ready, st)
		s.wake.Signal()
	}
}

// write sends what the streams have to send, each a frame at a time.
func (s *Session) write(w io.Writer) error {
	buf := make([]byte, 0, batch+maxData+headerSize)
	for {
		s.mu.Lock()
		for len(s.ready)+len(s.refused) == 0 && s.err == nil {
			s.wake.Wait()
		}
		if s.err != nil {
			s.mu.Unlock()
			return nil
		}
		buf = buf[:0]
		for _, id := range s.refused {
			buf = header{kindReset, id, 0}.appendTo(buf)
		}
		s.refused = s.refused[:0]
		for len(s.ready) > 0 && len(buf) < batch {
			st := s.ready[0]
			s.ready = s.ready[1:]
			st.queued = false
			buf = st.appendFrames(buf)
		}
		s.mu.Unlock()
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
}

// read takes the other end's frames.
func (s *Session) read(r *bufio.Reader) error {
	data := make([]byte, maxData)
	for {
		h, err := readHeader(r)
		if err != nil {
			return err
		}
		payload := data[:0]
		if h.kind == kindData {
			payload = data[:h.value]
			if _, err := io.ReadFull(r, payload); err != nil {
				return err
			}
		}
		in, err := s.handle(h, payload)
		if err != nil {
			return err
		}
		if in != nil {
			s.accept(in)
		}
	}
}

// handle does what a frame says. It returns a stream that was opened.
func (s *Session) handle(h header, payload []byte) (*Incoming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if h.kind == kindOpen {
		return s.opened(h)
	}
	if h.id&1 == uint32(s.side) && h.id > s.nextID || h.id&1 != uint32(s.side) && h.id > s.lastID {
		return nil, fmt.Errorf("%w: a frame for stream %d, which nobody has opened", ErrProtocol, h.id)
	}
	st := s.streams[h.id]
	if st == nil {
		return nil, nil // it is over here
	}
	return nil, st.handle(h, payload)
}

func (s *Session) opened(h header) (*Incoming, error) {
	if h.id&1 == uint32(s.side) || h.id <= s.lastID {
		return nil, fmt.Errorf("%w: stream %d cannot be opened", ErrProtocol, h.id)
	}
	s.lastID = h.id
	if s.theirs < maxStreams {
		return &Incoming{Port: h.value, stream: s.newStream(h.id, h.value)}, nil
	}
	if len(s.refused) >= maxRefused {
		return nil, fmt.Errorf("%w: it opens streams and does not read the answers", ErrProtocol)
	}
	s.refused = append(s.refused, h.id)
	s.wake.Signal()
	return nil, nil
}

// network is what addresses call this kind of stream.
const network = "muxed"

// Addr is a port, as a net.Addr.
type Addr uint32

// Network implements net.Addr.
func (Addr) Network() string { return network }

// String implements net.Addr.
func (a Addr) String() string { return fmt.Sprintf("port %d", uint32(a)) }

// lingerFor is how long a closed stream may take to deliver what was written.
const lingerFor = 30 * time.Second
