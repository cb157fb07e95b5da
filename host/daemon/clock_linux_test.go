package daemon

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestWatchClock sets the clock to what it is, which the kernel reports like any
// other setting.
func TestWatchClock(t *testing.T) {
	jumps := make(chan struct{}, 100)
	stop, err := watchClock(func() { jumps <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			stop()
			t.Skipf("cannot set the clock: %v", err)
		}
		<-jumps
	}
	stop()
	if len(jumps) > 0 {
		t.Error("it jumped on its own")
	}
}
