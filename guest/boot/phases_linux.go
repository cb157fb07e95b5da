package boot

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

// phases times the boot's phases and keeps their notes for a host that is not
// connected yet. It is safe for concurrent use.
type phases struct {
	mu    sync.Mutex // guards what follows
	early []wire.Note
	send  func(wire.Note) // nil before the Welcome
}

func newPhases() *phases { return &phases{} }

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// run times f as the phase called name.
func (p *phases) run(name string, f func() error) error {
	end := p.begin(name)
	err := f()
	end(err)
	return err
}

// begin reports that a phase begins; the function it returns, that it has ended.
func (p *phases) begin(name string) func(error) { return p.began(name, uptime()) }

func (p *phases) began(name string, since time.Duration) func(error) {
	p.note(wire.Phase{Name: name, Since: since})
	return func(err error) {
		end := wire.Phase{Name: name, Done: true, Since: since, Took: uptime() - since}
		if err != nil {
			end.Error = err.Error()
		}
		p.note(end)
	}
}

func (p *phases) note(phase wire.Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := (wire.Note{Phase: &phase}); p.send != nil {
		p.send(n)
	} else {
		p.early = append(p.early, n)
	}
}

// connect hands over the notes so far and all later ones. send must not block.
func (p *phases) connect(send func(wire.Note)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.early {
		send(n)
	}
	p.early, p.send = nil, send
}
