package cgroup

// Stats are a group's counters at one moment. What the kernel does not offer is
// zero.
type Stats struct {
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     []IOStats
}

// CPUStats are from cpu.stat.
type CPUStats struct {
	UsageMicros     uint64
	UserMicros      uint64
	SystemMicros    uint64
	Periods         uint64
	Throttled       uint64 // periods
	ThrottledMicros uint64
}

// MemoryStats are from memory.current and its neighbours. A limit is
// math.MaxUint64 when there is none.
type MemoryStats struct {
	Usage     uint64
	Peak      uint64
	Limit     uint64
	Swap      uint64
	SwapLimit uint64
	OOMKills  uint64
	Stat      map[string]uint64 // memory.stat, all of it
}

// PidsStats are from pids.current and pids.max; Limit is math.MaxUint64 when
// there is none.
type PidsStats struct {
	Current uint64
	Limit   uint64
}

// IOStats are one device's line of io.stat.
type IOStats struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
	DiscardBytes          uint64
	Discards              uint64
}
