package engine

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/engine/proctable"
)

// statsInterval is how often a stream of stats reports.
const statsInterval = time.Second

// Stats calls fn with the container's counters: once when stream is not set, else
// every second until ctx ends, the container is gone, or fn returns an error. With
// oneShot, and first of all in a stream, there is nothing to compare with: the one
// report of a call without either waits for a second reading.
func (e *Engine) Stats(ctx context.Context, name string, stream, oneShot bool, fn func(*apicontainer.StatsResponse) error) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	previous := &apicontainer.StatsResponse{}
	if !stream && !oneShot {
		// The one report needs something to compare with.
		if previous = c.stats(previous); previous.Read.IsZero() {
			return fn(previous)
		}
		if !sleep(ctx, statsInterval) {
			return ctx.Err()
		}
	}
	for {
		now := c.stats(previous)
		if err := fn(now); err != nil {
			return err
		}
		if !stream {
			return nil
		}
		previous = now
		select {
		case <-c.removed:
			return nil
		default:
		}
		if !sleep(ctx, statsInterval) {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// stats reads the counters; a container without a process has none.
func (c *Container) stats(previous *apicontainer.StatsResponse) *apicontainer.StatsResponse {
	c.mu.Lock()
	r := c.run
	out := &apicontainer.StatsResponse{ID: c.id, Name: "/" + c.rec.Name, OSType: "linux"}
	c.mu.Unlock()
	if r == nil {
		return out
	}
	s, err := r.task.Stats()
	if err != nil {
		return out
	}
	out.Read = time.Now().UTC()
	out.PreRead, out.PreCPUStats = previous.Read, previous.CPUStats
	out.CPUStats = cpuStats(s.CPU)
	out.MemoryStats = memoryStats(s.Memory)
	out.PidsStats = apicontainer.PidsStats{Current: s.Pids.Current, Limit: s.Pids.Limit}
	for _, d := range s.IO {
		for _, v := range []struct {
			op string
			n  uint64
		}{{"read", d.ReadBytes}, {"write", d.WriteBytes}} {
			out.BlkioStats.IoServiceBytesRecursive = append(out.BlkioStats.IoServiceBytesRecursive,
				apicontainer.BlkioStatEntry{Major: d.Major, Minor: d.Minor, Op: v.op, Value: v.n})
		}
	}
	nets, err := c.e.opts.Networks.Stats(c.id)
	if err == nil && len(nets) > 0 {
		out.Networks = map[string]apicontainer.NetworkStats{}
		for _, n := range nets {
			out.Networks[n.Interface] = apicontainer.NetworkStats{
				RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
				TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped}
		}
	}
	return out
}

func cpuStats(s cgroup.CPUStats) apicontainer.CPUStats {
	return apicontainer.CPUStats{
		CPUUsage: apicontainer.CPUUsage{TotalUsage: s.UsageMicros * 1000, UsageInKernelmode: s.SystemMicros * 1000,
			UsageInUsermode: s.UserMicros * 1000},
		SystemUsage: systemCPU(), OnlineCPUs: uint32(ncpu()),
		ThrottlingData: apicontainer.ThrottlingData{Periods: s.Periods, ThrottledPeriods: s.Throttled, ThrottledTime: s.ThrottledMicros * 1000},
	}
}

func memoryStats(s cgroup.MemoryStats) apicontainer.MemoryStats {
	m := apicontainer.MemoryStats{Usage: s.Usage, Limit: s.Limit, Stats: s.Stat}
	if total := TotalMemory(); m.Limit == math.MaxUint64 || m.Limit > uint64(total) {
		m.Limit = uint64(total)
	}
	return m
}

// systemCPU is the time all processors together have been up, in ns.
func systemCPU() uint64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks uint64
	for _, f := range strings.Fields(line)[1:min(8, len(strings.Fields(line)))] {
		n, _ := strconv.ParseUint(f, 10, 64)
		ticks += n
	}
	return ticks * (uint64(time.Second) / 100) // USER_HZ is 100 on every architecture we know
}

// TotalMemory is the machine's memory, in bytes.
func TotalMemory() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// Top lists the container's processes with ps's columns. Only "-ef", docker's
// default, and the names of columns ("-o pid,comm") are understood.
func (e *Engine) Top(ctx context.Context, name, args string) (*apicontainer.TopResponse, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	r := c.run
	if !c.rec.State.Status.Alive() || r == nil {
		c.mu.Unlock()
		return nil, conflict("container %s is not running", c.id)
	}
	c.event(events.ActionTop)
	c.mu.Unlock()
	table, err := proctable.Parse(args)
	if err != nil {
		return nil, err
	}
	pids, err := r.task.PIDs()
	if err != nil {
		return nil, fmt.Errorf("list the processes of %s: %w", name, err)
	}
	slices.Sort(pids)
	out := &apicontainer.TopResponse{Titles: table.Titles()}
	out.Processes, err = table.Rows(pids)
	return out, err
}
