// Package span records how long the phases of the engine's work take, in a ring
// of the latest ones.
package span

import (
	"sync"
	"time"
)

// size is how many spans are kept.
const size = 1024

// Span is one phase of one piece of work.
type Span struct {
	Name  string        `json:"name"` // "create", "mount", "network", "clone", ...
	ID    string        `json:"id"`   // of the container
	Start time.Time     `json:"start"`
	Took  time.Duration `json:"took"` // nanoseconds
}

// Ring keeps the latest spans. The zero value is ready, and safe for concurrent
// use.
type Ring struct {
	mu    sync.Mutex
	spans []Span
	next  int
}

// Begin starts a span; the function it returns ends it.
func (r *Ring) Begin(name, id string) func() {
	start := time.Now()
	return func() { r.add(Span{Name: name, ID: id, Start: start, Took: time.Since(start)}) }
}

func (r *Ring) add(s Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) < size {
		r.spans = append(r.spans, s)
		return
	}
	r.spans[r.next] = s
	r.next = (r.next + 1) % size
}

// All returns the spans in the order in which they ended.
func (r *Ring) All() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := append([]Span{}, r.spans[r.next:]...)
	return append(out, r.spans[:r.next]...)
}
