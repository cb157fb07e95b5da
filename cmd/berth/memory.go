package main

import (
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// daemonMemory is what the Go runtime of a daemon may take before it collects
	// harder, in bytes. It is no limit: a busy daemon may have more.
	daemonMemory = 48 << 20

	// returnDelay is how long after a collection memory is given back.
	returnDelay = 10 * time.Second

	// returnWorth is how many bytes there must be to gain, that it is done.
	returnWorth = 1 << 20
)

// returnMemory gives back to the system, from now on and for as long as the process
// lives, what bursts of work have used. The runtime itself keeps a share of it, and
// pools keep what they hold until two collections later.
//
// That there was work is seen from the runtime's own collections, so nothing of an
// idle process polls: delay after the first of them that finds worth bytes or more in
// no use, memory is returned, and then the next is waited for. The runtime collects
// an idle process every two minutes, which finds what a small burst has left.
func returnMemory(delay time.Duration, worth uint64) {
	var wait *time.Timer
	watch := func() {
		// The mark holds a pointer: without one the allocator may put it in a block
		// with values that live on.
		runtime.AddCleanup(&struct{ *byte }{}, func(t *time.Timer) { t.Reset(delay) }, wait)
	}
	wait = time.AfterFunc(delay, func() {
		if unused() >= worth {
			runtime.GC() // what pools hold goes with the second
			debug.FreeOSMemory()
		}
		watch()
	})
}

// unused returns how many bytes of memory the heap has from the system for nothing,
// by the last collection.
func unused() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapIdle - m.HeapReleased
}
