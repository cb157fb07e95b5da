package cgroup

import (
	"math"
	"os"
	"strconv"
	"strings"
)

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

// Stats reads g's counters. The group must exist.
func (g *Group) Stats() (Stats, error) {
	var s Stats
	b, err := os.ReadFile(g.dir + "/cpu.stat")
	if err != nil {
		return s, err
	}
	cpu := parseKeyed(string(b))
	s.CPU = CPUStats{
		UsageMicros: cpu["usage_usec"], UserMicros: cpu["user_usec"], SystemMicros: cpu["system_usec"],
		Periods: cpu["nr_periods"], Throttled: cpu["nr_throttled"], ThrottledMicros: cpu["throttled_usec"],
	}
	s.Memory = MemoryStats{
		Usage: g.number("memory.current"), Peak: g.number("memory.peak"), Limit: g.number("memory.max"),
		Swap: g.number("memory.swap.current"), SwapLimit: g.number("memory.swap.max"),
		OOMKills: parseKeyed(g.text("memory.events"))["oom_kill"],
		Stat:     parseKeyed(g.text("memory.stat")),
	}
	s.Pids = PidsStats{Current: g.number("pids.current"), Limit: g.number("pids.max")}
	s.IO = parseIO(g.text("io.stat"))
	return s, nil
}

func (g *Group) text(name string) string {
	b, err := os.ReadFile(g.dir + "/" + name)
	if err != nil {
		return "" // the controller is off
	}
	return string(b)
}

func (g *Group) number(name string) uint64 { return parseNumber(g.text(name)) }

func parseNumber(s string) uint64 {
	s = strings.TrimSpace(s)
	if s == "max" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// parseKeyed reads a "flat keyed" file: one "key number" per line.
func parseKeyed(s string) map[string]uint64 {
	m := make(map[string]uint64)
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(line, " "); ok {
			m[k] = parseNumber(v)
		}
	}
	return m
}

// parseIO reads io.stat: "8:0 rbytes=1 wbytes=2 ...".
func parseIO(s string) []IOStats {
	var all []IOStats
	for line := range strings.Lines(s) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		major, minor, ok := strings.Cut(fields[0], ":")
		if !ok {
			continue
		}
		st := IOStats{Major: parseNumber(major), Minor: parseNumber(minor)}
		targets := map[string]*uint64{
			"rbytes": &st.ReadBytes, "wbytes": &st.WriteBytes, "rios": &st.Reads,
			"wios": &st.Writes, "dbytes": &st.DiscardBytes, "dios": &st.Discards,
		}
		for _, f := range fields[1:] {
			if k, v, ok := strings.Cut(f, "="); ok && targets[k] != nil {
				*targets[k] = parseNumber(v)
			}
		}
		all = append(all, st)
	}
	return all
}
