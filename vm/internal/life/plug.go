package life

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/berthvm/berth/vm"
)

// Plug is how a machine is made to end by whoever does not wait for that: Pull says
// so, and the one who runs the machine sees to it. Its methods are safe for
// concurrent use.
type Plug struct {
	pulled chan struct{}

	mu      sync.Mutex // guards what follows
	out     bool
	verdict error
}

// NewPlug returns one that is in.
func NewPlug() *Plug { return &Plug{pulled: make(chan struct{})} }

// Pull has the machine end, for a reason that counts unless there is an earlier one;
// nil is an orderly end. It waits for nothing.
func (p *Plug) Pull(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.out {
		p.out, p.verdict = true, reason
		close(p.pulled)
	}
}

// Pulled is closed by Pull.
func (p *Plug) Pulled() <-chan struct{} { return p.pulled }

// Out tells whether the plug was pulled, and why.
func (p *Plug) Out() (reason error, out bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verdict, p.out
}

// Until calls pull again and again until ended is closed, once the plug is out: a
// machine that is just starting may refuse.
func (p *Plug) Until(ended <-chan struct{}, every time.Duration, pull func()) {
	select {
	case <-ended:
		return
	case <-p.pulled:
	}
	for {
		pull()
		select {
		case <-ended:
			return
		case <-time.After(every):
		}
	}
}

// Gone waits until a machine that was told to end has ended, and all that belongs
// to it, but no longer than within. hanging is what the error says then.
func (l *Life) Gone(within time.Duration, hanging string) error {
	select {
	case <-l.ended:
		return nil
	case <-time.After(within):
		return errors.New(hanging)
	}
}

// SwitchOff is a machine's Stop: its power button is pressed again and again, and the
// plug is pulled when ctx ends. gone waits for the end that follows.
func (l *Life) SwitchOff(ctx context.Context, pull func(reason error), every time.Duration, press func(context.Context), gone func() error) error {
	if err := l.Open(); err != nil {
		return err
	}
	if l.State() == Created {
		return nil
	}
	for ctx.Err() == nil {
		press(ctx)
		select {
		case <-l.Done():
			return nil
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	pull(vm.ErrKilled)
	return gone()
}

// Await runs a call to the hypervisor that runs the machine, for as long as ctx
// allows. The call itself cannot be taken back.
func (l *Life) Await(ctx context.Context, call func() error) error {
	if err := l.Up(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Frost is whether a machine is paused. The zero value is a machine that runs. It
// is safe for concurrent use.
type Frost struct {
	mu     sync.Mutex
	paused bool
}

// Set pauses or resumes by call, if that changes anything: hypervisors refuse what
// does not.
func (f *Frost) Set(paused bool, call func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused == paused {
		return nil
	}
	if err := call(); err != nil {
		return err
	}
	f.paused = paused
	return nil
}
