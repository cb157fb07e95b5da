package qemu

import (
	"sync"
	"time"
)

// counterKHz is how often in a millisecond the host's time-stamp counter moves, or
// 0 where there is none. Under TCG the guest's counter is the host's. The guest's
// kernel measures it against an emulated timer, and where the host is busy meanwhile
// finds a fraction of it: all its clocks then run several times too fast. It must be
// told.
var counterKHz = sync.OnceValue(func() int {
	if !hasCounter {
		return 0
	}
	return measureCounter(readCounter, 10*time.Millisecond)
})

// measureCounter measures a counter over a time.
func measureCounter(read func() uint64, over time.Duration) int {
	first, t0 := readTogether(read)
	time.Sleep(over)
	second, t1 := readTogether(read)
	return int(float64(second-first) / float64(t1.Sub(t0)) * 1e6)
}

// readTogether reads the counter and the clock at one moment, as close as they come
// in a few attempts: the process may be interrupted between the two.
func readTogether(read func() uint64) (count uint64, at time.Time) {
	closest := time.Duration(1<<63 - 1)
	for range 20 {
		before := time.Now()
		n := read()
		if d := time.Since(before); d < closest {
			closest, count, at = d, n, before.Add(d/2)
		}
	}
	return count, at
}
