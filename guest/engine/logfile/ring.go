package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// DefaultBuffer is how much a Ring holds when nobody says, in bytes, as in docker.
const DefaultBuffer = 1e6

// batchSize is about how much a Ring gives the log at once, in bytes.
const batchSize = 64 << 10

// entrySize is what an entry takes beside its line, in bytes.
const entrySize = 72

// Appender takes entries; *Log is one. It must not keep them.
type Appender interface {
	Append(entries ...Entry) error
}

// Ring stands before a log that may be slow, for docker's mode "non-blocking": it
// takes entries without waiting and holds those that the log has not taken yet, up to
// a size. Entries that do not fit are lost, as in docker: those that came first are
// kept. What it holds is lost with the engine too. It is safe for concurrent use.
type Ring struct {
	to  Appender
	max int64

	mu     sync.Mutex
	more   sync.Cond
	queue  []Entry
	size   int64
	lost   int // entries
	closed bool
}

// Ring returns the Ring that the log's options ask for, nil for none.
func (l *Log) Ring() *Ring {
	if !l.opts.NonBlocking {
		return nil
	}
	return NewRing(l, l.opts.Buffer)
}

// NewRing returns a Ring of a size in bytes. Run passes on what it is given.
func NewRing(to Appender, size int64) *Ring {
	r := &Ring{to: to, max: size}
	r.more.L = &r.mu
	return r
}

// Append never waits for the log. Its error is always nil.
func (r *Ring) Append(entries ...Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		size := int64(len(e.Line) + entrySize)
		if r.closed || len(r.queue) > 0 && r.size+size > r.max {
			r.lost++
			continue
		}
		e.Line = bytes.Clone(e.Line)
		r.queue = append(r.queue, e)
		r.size += size
	}
	r.more.Signal()
	return nil
}

// Close ends the ring: Run passes on what is left and returns.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.more.Signal()
}

// Run gives the log what Append was given, until Close and the last entry. It returns
// an error of the log, after which it went on, and of entries that did not fit.
func (r *Ring) Run() error {
	var failed error
	for {
		batch := r.next()
		if batch == nil {
			break
		}
		if err := r.to.Append(batch...); err != nil {
			failed = err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost > 0 {
		failed = errors.Join(failed, fmt.Errorf("%d entries did not fit in the buffer of %d bytes", r.lost, r.max))
	}
	return failed
}

// next waits for entries and takes some, nil at the end.
func (r *Ring) next() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 && !r.closed {
		r.more.Wait()
	}
	n, size := 0, 0
	for n < len(r.queue) && size < batchSize {
		size += len(r.queue[n].Line) + entrySize
		n++
	}
	batch := slices.Clone(r.queue[:n])
	r.queue, r.size = slices.Delete(r.queue, 0, n), r.size-int64(size)
	if len(r.queue) == 0 {
		r.queue = nil // a silent container holds no buffer
	}
	return batch
}
