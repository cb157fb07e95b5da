package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
)

// Stream is one of a process's standard streams, numbered as on the wire.
type Stream byte

// The streams.
const (
	Stdin Stream = iota
	Stdout
	Stderr
)

func (s Stream) String() string {
	switch s {
	case Stdin:
		return "stdin"
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return "invalid"
}

// maxQueue is how much output a reader may be behind, in bytes, before it holds
// up the process, as a terminal that is not read would.
const maxQueue = 1 << 20

// Set is the streams of one run of a process. It exists before the process does,
// so that one can attach first. It is safe for concurrent use.
type Set struct {
	mu      sync.Mutex
	readers map[*Reader]struct{}
	ended   bool

	ready   chan struct{} // closed when stdin is set, or will never be
	started bool
	stdin   *os.File
	onClose func() // called once when standard input is closed
}

// NewSet returns the streams of a process that is not started yet.
func NewSet() *Set {
	return &Set{readers: map[*Reader]struct{}{}, ready: make(chan struct{})}
}

// SetStdin gives the set the end of standard input that is written to, or nil
// for none, and lets those who wait for it go on. The set owns the file. onClose,
// which may be nil, is called when it is closed before End.
func (s *Set) SetStdin(f *os.File, onClose func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.ended {
		if f != nil {
			f.Close()
		}
		return
	}
	s.started = true
	s.stdin, s.onClose = f, onClose
	close(s.ready)
}

// writeStdin writes to the process's standard input. It waits for the process
// to be started, unless gone is closed first, and for it to read. After
// closeStdin, or when the process has ended or has no standard input, the error
// is io.ErrClosedPipe.
func (s *Set) writeStdin(gone <-chan struct{}, p []byte) (int, error) {
	select {
	case <-s.ready:
	case <-gone:
		return 0, io.ErrClosedPipe
	}
	s.mu.Lock()
	f := s.stdin
	s.mu.Unlock()
	if f == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := f.Write(p)
	if errors.Is(err, os.ErrClosed) {
		err = io.ErrClosedPipe
	}
	return n, err
}

// closeStdin ends the process's standard input, once it is started, unless gone
// is closed first.
func (s *Set) closeStdin(gone <-chan struct{}) {
	select {
	case <-s.ready:
	case <-gone:
		return
	}
	s.mu.Lock()
	f, onClose := s.stdin, s.onClose
	s.stdin = nil
	s.mu.Unlock()
	if f != nil {
		f.Close()
		if onClose != nil {
			onClose()
		}
	}
}

// End says that no output and no reading of input will follow. Readers get what
// they have not read yet, then io.EOF.
func (s *Set) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.stdin != nil {
		s.stdin.Close()
		s.stdin = nil
	}
	if !s.started {
		s.started = true
		close(s.ready)
	}
	for r := range s.readers {
		r.end()
	}
}

// Subscribe returns a reader of the streams asked for, from now on. Close it.
func (s *Set) Subscribe(stdout, stderr bool) *Reader {
	r := &Reader{set: s, want: [3]bool{Stdout: stdout, Stderr: stderr}}
	r.cond.L = &r.mu
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers[r] = struct{}{}
	if s.ended {
		r.end()
	}
	return r
}

// Emit hands output to the readers. It waits for those who are too far behind.
func (s *Set) Emit(stream Stream, p []byte) {
	if len(p) == 0 {
		return
	}
	s.mu.Lock()
	var to []*Reader
	for r := range s.readers {
		if r.want[stream] {
			to = append(to, r)
		}
	}
	s.mu.Unlock()
	for _, r := range to {
		r.put(stream, p)
	}
}

// Reader is one subscription to a Set's output.
type Reader struct {
	set  *Set
	want [3]bool

	mu     sync.Mutex
	cond   sync.Cond
	queue  []chunk
	size   int
	closed bool // by its owner
	ended  bool // by the set
}

type chunk struct {
	stream Stream
	data   []byte
}

func (r *Reader) put(stream Stream, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.size >= maxQueue && !r.closed {
		r.cond.Wait()
	}
	if r.closed {
		return
	}
	r.queue = append(r.queue, chunk{stream, append([]byte(nil), p...)})
	r.size += len(p)
	r.cond.Broadcast()
}

func (r *Reader) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.cond.Broadcast()
}

// Next waits for output. At the end, and after Close, the error is io.EOF.
func (r *Reader) Next() (Stream, []byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 && !r.closed && !r.ended {
		r.cond.Wait()
	}
	if r.closed || len(r.queue) == 0 {
		return 0, nil, io.EOF
	}
	c := r.queue[0]
	r.queue[0] = chunk{}
	r.queue = r.queue[1:]
	r.size -= len(c.data)
	r.cond.Broadcast()
	return c.stream, c.data, nil
}

// Close ends the subscription and wakes whoever waits in Next.
func (r *Reader) Close() {
	r.set.mu.Lock()
	delete(r.set.readers, r)
	r.set.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.queue = nil
	r.cond.Broadcast()
}
