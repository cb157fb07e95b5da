// Package life is the state machine that every driver's vm.Machine goes
// through. It knows no hypervisor: a driver tells it what happened, and it
// answers the guards at the top of the driver's methods and wakes the waiters.
//
//	created ──Begin──▶ starting ──Running──▶ running ──End──▶ ended
//	   │                  └──────────────End───────────────────▲
//	   └────────────────────────Close──────────────────────────┘
//
// Close can be called in every state; it marks the machine closed beside its
// state, so that Wait still tells why the machine ended.
package life

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/berthvm/berth/vm"
)

// State is where a machine is in its life.
type State int

// The states, in the only order a machine goes through them.
const (
	Created State = iota
	Starting
	Running
	Ended
)

// String names the state for messages.
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Starting:
		return "starting"
	case Running:
		return "running"
	case Ended:
		return "ended"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Life is one machine's life. Its methods are safe for concurrent use.
type Life struct {
	ended chan struct{} // closed when state becomes Ended

	mu     sync.Mutex
	state  State
	closed bool
	err    error // why it ended
}

// New returns the life of a machine that was just created.
func New() *Life {
	return &Life{ended: make(chan struct{})}
}

// transition moves to next, if that is ahead. The caller holds mu.
func (l *Life) transition(next State) bool {
	if next <= l.state {
		return false
	}
	l.state = next
	if next == Ended {
		close(l.ended)
	}
	return true
}

// State returns where the machine is.
func (l *Life) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Begin claims the machine's one start.
// It fails with vm.ErrClosed or vm.ErrStarted.
func (l *Life) Begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return vm.ErrClosed
	}
	if l.state != Created {
		return vm.ErrStarted
	}
	l.transition(Starting)
	return nil
}

// Running says that the start has succeeded. It fails, with the reason of the
// end, when the machine has ended meanwhile.
func (l *Life) Running() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.transition(Running) {
		return nil
	}
	if l.err == nil {
		return vm.ErrNotRunning
	}
	return l.err
}

// End says that the machine is off, and why; nil is an orderly power-off. The
// first End counts, and the return value tells whether this was it.
func (l *Life) End(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == Ended {
		return false
	}
	l.err = err
	return l.transition(Ended)
}

// Close marks the machine closed. A machine that was never started ends by it,
// with vm.ErrClosed. It returns false if the machine was closed before.
func (l *Life) Close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.closed = true
	if l.state == Created {
		l.err = vm.ErrClosed
		l.transition(Ended)
	}
	return true
}

// Open is the guard of methods that work in any state but closed.
func (l *Life) Open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return vm.ErrClosed
	}
	return nil
}

// Up is the guard of methods that need a machine that runs: it returns nil,
// vm.ErrClosed or vm.ErrNotRunning.
func (l *Life) Up() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return vm.ErrClosed
	case l.state != Running:
		return vm.ErrNotRunning
	}
	return nil
}

// Dial calls dial while the machine runs. What dial says of a machine that ended
// meanwhile gives way to what Up says.
func (l *Life) Dial(ctx context.Context, port uint32, dial func(context.Context, uint32) (net.Conn, error)) (net.Conn, error) {
	if err := l.Up(); err != nil {
		return nil, err
	}
	c, err := dial(ctx, port)
	if err != nil {
		if down := l.Up(); down != nil {
			return nil, down
		}
	}
	return c, err
}

// Listenable says whether the guest may still come to dial: before the start too,
// but not once the machine has ended.
func (l *Life) Listenable() error {
	if err := l.Open(); err != nil {
		return err
	}
	if l.State() == Ended {
		return vm.ErrNotRunning
	}
	return nil
}

// Done is closed once the machine has ended.
func (l *Life) Done() <-chan struct{} { return l.ended }

// Wait blocks until the machine has ended and returns why, or ctx's error. A
// machine that has ended answers even when ctx is done.
func (l *Life) Wait(ctx context.Context) error {
	select {
	case <-l.ended:
	default:
		select {
		case <-l.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
