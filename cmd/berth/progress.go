package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/berthvm/berth/host/api"
)

// progress shows how a start goes on: one updated line on a terminal, a line for
// each finished phase elsewhere. A start that has nothing to do shows nothing.
// It is safe for concurrent use.
type progress struct {
	w        io.Writer
	name     string
	terminal bool
	began    time.Time

	mu    sync.Mutex // guards all below
	phase string
	shown bool
	stop  chan struct{} // ends the clock of a terminal's line
	done  chan struct{}
}

func newStartProgress(w io.Writer, name string) *progress {
	return &progress{w: w, name: name, terminal: isTerminal(w), began: time.Now()}
}

// report takes a phase that has begun or ended.
func (p *progress) report(ph api.Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ph.Name == api.PhaseRestore && ph.Error != "" { // it is no failure of the start
		if p.terminal {
			fmt.Fprint(p.w, "\r\x1b[K")
		}
		fmt.Fprintf(p.w, "berth: warning: the saved state is not used: %s: the machine boots anew\n", ph.Error)
	}
	if !p.terminal {
		if !p.shown {
			fmt.Fprintf(p.w, "Starting machine %q\n", p.name)
			p.shown = true
		}
		if ph.Done {
			fmt.Fprintf(p.w, "  %-12s %s%s\n", ph.Name, seconds(ph.Took), failure(ph.Error))
		}
		return
	}
	if !ph.Done || p.phase == "" {
		p.phase = ph.Name
	}
	p.shown = true
	p.draw()
	if p.stop == nil {
		p.stop, p.done = make(chan struct{}), make(chan struct{})
		go p.tick()
	}
}

// tick keeps the line's clock going.
func (p *progress) tick() {
	defer close(p.done)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// draw rewrites the line. The mutex is held.
func (p *progress) draw() {
	fmt.Fprintf(p.w, "\r\x1b[KStarting machine %q: %s (%s)", p.name, p.phase, seconds(time.Since(p.began)))
}

// end finishes the display.
func (p *progress) end(err error) {
	p.mu.Lock()
	stop, shown := p.stop, p.shown
	p.mu.Unlock()
	if stop != nil {
		close(stop)
		<-p.done
	}
	if !shown {
		return
	}
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	if err == nil {
		fmt.Fprintf(p.w, "Machine %q is running (%s)\n", p.name, seconds(time.Since(p.began)))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// failure marks a phase; the reason comes with the command's error.
func failure(msg string) string {
	if msg == "" {
		return ""
	}
	return " failed"
}
