package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
)

// progress is what the daemon knows of its machine, and who watches. It is safe
// for concurrent use.
type progress struct {
	log  *slog.Logger
	save func(api.Status) error

	mu        sync.Mutex // guards all below
	status    api.Status
	began     time.Time // of the start that status.Start tells of
	warning   string    // goes into the last state
	followers int
	changed   chan struct{} // closed and replaced when anything changes
}

func newProgress(log *slog.Logger, initial api.Status, save func(api.Status) error) *progress {
	return &progress{log: log, save: save, status: initial, began: time.Now(), changed: make(chan struct{})}
}

// transition is the only place where the state changes. A Failed machine keeps
// its first error: what follows is its consequence.
func (p *progress) transition(to api.State, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.status
	if s.State == api.Failed || s.State == to {
		return
	}
	p.log.Info("machine is "+string(to), "was", s.State, "error", err)
	if to == api.Starting {
		p.began, s.Start, s.Engine = time.Now(), nil, nil
	}
	s.State, s.Since, s.Phase, s.Paused = to, time.Now(), "", false
	s.LastError, s.LastErrorKind = "", ""
	if err != nil {
		s.LastError, s.LastErrorKind = err.Error(), KindOf(err)
	}
	if to == api.Stopped && p.warning != "" {
		s.LastError, s.LastErrorKind = p.warning, api.KindAtRisk
	}
	if !to.Alive() {
		s.PID = 0
	}
	if err := p.save(*s); err != nil {
		p.log.Warn("cannot record the machine's state", "error", err)
	}
	p.wake()
}

func (p *progress) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// update changes facts other than the state.
func (p *progress) update(f func(*api.Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
	p.wake()
}

func (p *progress) get() api.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshot()
}

// change is closed when anything changes after this call.
func (p *progress) change() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *progress) snapshot() api.Status {
	s := p.status
	s.Start = append([]api.Phase(nil), s.Start...)
	return s
}

// endPhase ends a phase that another goroutine began.
func (p *progress) endPhase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ph := range p.status.Start {
		if ph.Name == name && !ph.Guest && !ph.Done {
			ph.Took, ph.Done = time.Since(p.began)-ph.Begin, true
			p.put(ph)
			return
		}
	}
}

// warn notes what went wrong without making the end a failure.
func (p *progress) warn(msg string) {
	p.log.Warn(msg)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.warning = msg
}

// maxPhases bounds what a guest can make the daemon remember.
const maxPhases = 100

// begin starts a phase of the host's; the returned function ends it.
func (p *progress) begin(name string) (end func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	begin := time.Since(p.began)
	p.status.Phase = name
	p.put(api.Phase{Name: name, Begin: begin})
	return func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		ph := api.Phase{Name: name, Begin: begin, Took: time.Since(p.began) - begin, Done: true}
		if err != nil {
			ph.Error = err.Error()
		}
		p.put(ph)
	}
}

// guest notes a phase as PID 1 reports it. Its clock began with the kernel: the
// phase is placed by when the report arrived.
func (p *progress) guest(w wire.Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State != api.Starting || len(p.status.Start) >= maxPhases || len(w.Name) > 64 || len(w.Error) > 1024 {
		return
	}
	begin := time.Since(p.began) - max(0, w.Took)
	ph := api.Phase{Name: w.Name, Guest: true, Begin: max(0, begin), Done: w.Done, Took: w.Took, Error: w.Error}
	if !w.Done {
		p.status.Phase = w.Name
	}
	p.put(ph)
}

// put adds the phase, or completes the one that began. The mutex is held.
func (p *progress) put(ph api.Phase) {
	defer p.wake()
	for i, old := range p.status.Start {
		if old.Name == ph.Name && old.Guest == ph.Guest && !old.Done {
			p.status.Start[i] = ph
			return
		}
	}
	p.status.Start = append(p.status.Start, ph)
}

// follow emits the phases as they are and become, and the status in which the
// start ended.
func (p *progress) follow(ctx context.Context, emit func(api.Event) error) error {
	p.mu.Lock()
	p.followers++
	defer func() {
		p.mu.Lock()
		p.followers--
		p.mu.Unlock()
	}()
	var sent []api.Phase
	for {
		s, changed := p.snapshot(), p.changed
		p.mu.Unlock()
		for i, ph := range s.Start {
			if i < len(sent) && sent[i] == ph {
				continue
			}
			if err := emit(api.Event{Phase: &ph}); err != nil {
				return err
			}
		}
		sent = s.Start
		if s.State != api.Starting {
			return emit(api.Event{End: &s})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		p.mu.Lock()
	}
}

// mayCancel reports whether a start can be given up: nobody else waits for it.
func (p *progress) mayCancel() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.State == api.Starting && p.followers <= 1
}

// Error is a failure with the kind that api.Status carries.
type Error struct {
	Kind api.Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// KindOf says what kind of failure an error of Run is.
func KindOf(err error) api.Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return classify(err)
}
