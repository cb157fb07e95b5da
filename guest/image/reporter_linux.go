package image

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// reportEvery is how often one layer's numbers are reported.
const reportEvery = 100 * time.Millisecond

// reporter turns what happens to layers into lines of progress. It is safe for
// concurrent use, and with a nil function it does nothing.
type reporter struct {
	mu   sync.Mutex // held while fn runs
	fn   ProgressFunc
	last map[digest.Digest]lastLine
}

type lastLine struct {
	status string
	at     time.Time
}

func newReporter(fn ProgressFunc) *reporter {
	return &reporter{fn: fn, last: map[digest.Digest]lastLine{}}
}

// line reports a line of its own.
func (r *reporter) line(p Progress) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn(p)
}

// layer reports a layer's status: each new one, and its numbers now and then. A
// layer that is done is not reported again.
func (r *reporter) layer(d digest.Digest, status string, current, total int64) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.last[d]
	if isFinal(last.status) || last.status == status && (total == 0 || time.Since(last.at) < reportEvery) {
		return
	}
	r.last[d] = lastLine{status: status, at: time.Now()}
	r.fn(Progress{ID: shortID(d), Status: status, Current: current, Total: total})
}

// exists reports a layer that was in the store, unless this pull brought it.
func (r *reporter) exists(d digest.Digest) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	status := r.last[d].status
	r.mu.Unlock()
	switch status {
	case "", "Pulling fs layer", "Waiting":
		r.layer(d, "Already exists", 0, 0)
	}
}

func isFinal(status string) bool {
	switch status {
	case "Already exists", "Pull complete", "Pushed", "Layer already exists", "Load complete":
		return true
	}
	return false
}

func shortID(d digest.Digest) string {
	if hex := d.Encoded(); len(hex) > 12 {
		return hex[:12]
	}
	return d.Encoded()
}
