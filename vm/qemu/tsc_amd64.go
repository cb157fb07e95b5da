package qemu

import "runtime"

// hasCounter is false where the clock moves in steps too long to measure by.
const hasCounter = runtime.GOOS != "windows"

// readCounter reads the time-stamp counter.
func readCounter() uint64
