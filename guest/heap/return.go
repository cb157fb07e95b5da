package heap

import (
	"math"
	"runtime"
	"runtime/debug"
	"time"
)

// Return gives back to the system what bursts of work have used, and to begin with
// what the start has. The runtime itself keeps a share of it, and pools keep what they
// hold until two collections later.
//
// That is done delay after this call, and then delay after each collection that has
// left worth bytes or more in no use. In between nothing polls. The runtime collects
// an idle program every two minutes, which finds what a small burst has left.
func Return(delay time.Duration, worth uint64) {
	var wait *time.Timer
	first := true
	wait = time.AfterFunc(math.MaxInt64, func() {
		if first || unused() >= worth {
			debug.FreeOSMemory()
		}
		first = false
		Collected(func() { wait.Reset(delay) })
	})
	wait.Reset(delay) // not before wait is there
}

// Collected calls f once, after the next collection, in a goroutine of the runtime's: f
// must not wait.
func Collected(f func()) {
	// The mark holds a pointer: without one the allocator may put it in a block with
	// values that live on.
	runtime.AddCleanup(&struct{ *byte }{}, func(f func()) { f() }, f)
}

// unused returns how many bytes of memory the heap has from the system for nothing,
// by the last collection.
func unused() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapIdle - m.HeapReleased
}
