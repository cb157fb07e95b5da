package life

import (
	"context"
	"errors"
	"testing"

	"github.com/berthvm/berth/vm"
)

func TestGuardsInEveryState(t *testing.T) {
	fault := errors.New("fault")
	tests := []struct {
		name                  string
		do                    func(*Life)
		state                 State
		begin, up, open, wait error // wait: context.Canceled means it still blocks
	}{
		{"created", func(*Life) {}, Created, nil, vm.ErrNotRunning, nil, context.Canceled},
		{"starting", func(l *Life) { l.Begin() }, Starting, vm.ErrStarted, vm.ErrNotRunning, nil, context.Canceled},
		{"running", func(l *Life) { l.Begin(); l.Running() }, Running, vm.ErrStarted, nil, nil, context.Canceled},
		{"powered off", func(l *Life) { l.Begin(); l.Running(); l.End(nil) }, Ended, vm.ErrStarted, vm.ErrNotRunning, nil, nil},
		{"failed start", func(l *Life) { l.Begin(); l.End(fault) }, Ended, vm.ErrStarted, vm.ErrNotRunning, nil, fault},
		{"closed unstarted", func(l *Life) { l.Close() }, Ended, vm.ErrClosed, vm.ErrClosed, vm.ErrClosed, vm.ErrClosed},
		{"closed running", func(l *Life) { l.Begin(); l.Running(); l.Close() }, Running, vm.ErrClosed, vm.ErrClosed, vm.ErrClosed, context.Canceled},
		{"closed, then ended", func(l *Life) { l.Begin(); l.Running(); l.Close(); l.End(vm.ErrKilled) }, Ended, vm.ErrClosed, vm.ErrClosed, vm.ErrClosed, vm.ErrKilled},
		{"first end counts", func(l *Life) { l.Begin(); l.End(fault); l.End(nil) }, Ended, vm.ErrStarted, vm.ErrNotRunning, nil, fault},
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := New()
			tt.do(l)
			if got := l.State(); got != tt.state {
				t.Errorf("state = %v, want %v", got, tt.state)
			}
			if got := l.Up(); !errors.Is(got, tt.up) {
				t.Errorf("Up() = %v, want %v", got, tt.up)
			}
			if got := l.Open(); !errors.Is(got, tt.open) {
				t.Errorf("Open() = %v, want %v", got, tt.open)
			}
			if got := l.Wait(gone); !errors.Is(got, tt.wait) {
				t.Errorf("Wait() = %v, want %v", got, tt.wait)
			}
			if got := l.Begin(); !errors.Is(got, tt.begin) {
				t.Errorf("Begin() = %v, want %v", got, tt.begin)
			}
		})
	}
}

func TestRunningAfterEnd(t *testing.T) {
	l := New()
	if err := l.Begin(); err != nil {
		t.Fatal(err)
	}
	l.End(vm.ErrKilled)
	if err := l.Running(); !errors.Is(err, vm.ErrKilled) {
		t.Fatalf("Running() = %v, want the reason of the end", err)
	}
}
