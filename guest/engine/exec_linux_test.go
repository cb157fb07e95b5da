package engine

import (
	"testing"
	"time"
)

// TestExecStarting: an exec that is being started, as long as that may take in a
// container that somebody pauses meanwhile, keeps nobody from the container.
func TestExecStarting(t *testing.T) {
	c := &Container{run: &run{}}
	x := &Exec{c: c, in: c.run, done: make(chan struct{})}
	x.mu.Lock() // as run does
	defer x.mu.Unlock()
	told := make(chan bool)
	go func() { told <- x.missed() || x.expired() }()
	select {
	case gone := <-told:
		if gone {
			t.Error("the exec is said to be gone")
		}
	case <-time.After(time.Minute):
		t.Fatal("who asks for the exec holds the container until it is started")
	}
}
