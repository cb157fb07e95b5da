package qemu

import (
	"math"
	"testing"
	"time"
)

// TestMeasureCounter measures a counter whose frequency is known.
func TestMeasureCounter(t *testing.T) {
	start := time.Now()
	read := func() uint64 { return uint64(time.Since(start).Nanoseconds()) * 5 / 2 }
	if got := measureCounter(read, time.Millisecond); math.Abs(float64(got)-2.5e6) > 25_000 {
		t.Errorf("%d kHz, want 2500000", got)
	}
}

// TestCounter: two measurements of the host's own agree, however busy it is.
func TestCounter(t *testing.T) {
	if !hasCounter {
		t.Skip("this processor has no time-stamp counter")
	}
	a, b := counterKHz(), measureCounter(readCounter, 50*time.Millisecond)
	if a < 100_000 || math.Abs(float64(a-b)) > float64(a)/100 {
		t.Errorf("%d and %d kHz", a, b)
	}
}
