package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
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

// paceHeap sets, after each collection from now on, how much may be allocated until
// the next.
func paceHeap() {
	percent := leastPercent
	var pace func(*byte)
	watch := func() {
		// The mark is collected with the next collection. It holds a pointer: without one
		// the allocator may put it in a block with values that live on.
		runtime.AddCleanup(&struct{ *byte }{}, pace, nil)
	}
	pace = func(*byte) {
		if p := percentFor(heapInUse()); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
		watch()
	}
	pace(nil)
}

// percentFor returns how much garbage there may be beside so many bytes in use. The
// answers are few: each change stops the program for a moment.
func percentFor(inUse uint64) int {
	for p := mostPercent; p > leastPercent; p /= 2 {
		if inUse*uint64(p) <= 100*heapRoom {
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

// freeHeap gives back to the kernel what a burst of requests has used.
func freeHeap() stage {
	return stage{after: 3 * time.Second, every: 15 * time.Second, f: func(func() bool) {
		runtime.GC() // what pools hold goes with the second collection
		debug.FreeOSMemory()
	}}
}
