package main

import (
	"runtime/debug"
	"runtime/metrics"

	"github.com/berthvm/berth/guest/heap"
)

const (
	// leastPercent is how much garbage the heap may hold, in hundredths of what is in
	// use, before it is collected: less than Go's 100, for the machine's memory belongs
	// to containers.
	leastPercent = 50
	// mostPercent is that of a small heap, for a heap of a few MB collected at a half
	// would be collected all the time: three times in a build that has nothing to do.
	// The runtime lets the heap grow to 4 MB times this before the first collection.
	mostPercent = 400
	// heapRoom is how many bytes of garbage are worth no collection, where mostPercent
	// allows them. The idle engine returns them.
	heapRoom = 16 << 20
)

// paceHeap sets, after each collection from now on, how much may be allocated until the
// next: less than Go would beside a large heap, more beside a small one.
func paceHeap() {
	percent := 0
	var pace func()
	pace = func() {
		if p := percentFor(heapInUse()); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
		heap.Collected(pace)
	}
	pace()
}

// percentFor returns how much garbage there may be beside so many in use. The
// answers are few: each change stops the program for a moment.
func percentFor(bytes uint64) int {
	for p := mostPercent; p > leastPercent; p /= 2 {
		if bytes*uint64(p) <= 100*heapRoom {
			return p
		}
	}
	return leastPercent
}

// heapInUse returns how many bytes the last collection has found in use.
func heapInUse() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
