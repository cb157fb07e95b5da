package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
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
)

// statsInterval is how often a stream of stats reports.
const statsInterval = time.Second

// Stats calls fn with the container's counters: once when stream is not set, else
// every second until ctx ends, the container is gone, or fn returns an error.
// With oneShot the first report does not wait for a second reading to compare.
func (e *Engine) Stats(ctx context.Context, name string, stream, oneShot bool, fn func(*apicontainer.StatsResponse) error) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	previous := &apicontainer.StatsResponse{}
	if !oneShot {
		// The first report needs something to compare with.
		if previous = c.stats(previous); previous.Read.IsZero() && !stream {
			return fn(previous)
		}
		if !stream && !sleep(ctx, statsInterval) {
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
	columns, err := topColumns(args)
	if err != nil {
		return nil, err
	}
	pids, err := r.task.PIDs()
	if err != nil {
		return nil, fmt.Errorf("list the processes of %s: %w", name, err)
	}
	slices.Sort(pids)
	out := &apicontainer.TopResponse{Processes: [][]string{}}
	for _, col := range columns {
		out.Titles = append(out.Titles, col.title)
	}
	for _, pid := range pids {
		p, err := readProcess(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		var row []string
		for _, col := range columns {
			row = append(row, col.value(p))
		}
		out.Processes = append(out.Processes, row)
	}
	return out, nil
}

// process is one line of /proc.
type process struct {
	pid, ppid, uid int
	comm, state    string
	tty            string
	cpu            time.Duration
	start          time.Time
	rss, vsz       int64 // bytes
	command        string
}

type column struct {
	name, title string
	value       func(process) string
}

var columns = []column{
	{"uid", "UID", func(p process) string { return userName(p.uid) }},
	{"pid", "PID", func(p process) string { return strconv.Itoa(p.pid) }},
	{"ppid", "PPID", func(p process) string { return strconv.Itoa(p.ppid) }},
	{"c", "C", func(p process) string {
		up := time.Since(p.start)
		if up <= 0 {
			return "0"
		}
		return strconv.Itoa(int(100 * p.cpu / up))
	}},
	{"stime", "STIME", func(p process) string { return p.start.Format("15:04") }},
	{"tty", "TTY", func(p process) string { return p.tty }},
	{"time", "TIME", func(p process) string {
		s := int(p.cpu / time.Second)
		return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
	}},
	{"cmd", "CMD", func(p process) string { return p.command }},
	{"user", "USER", func(p process) string { return userName(p.uid) }},
	{"comm", "COMMAND", func(p process) string { return p.comm }},
	{"args", "COMMAND", func(p process) string { return p.command }},
	{"command", "COMMAND", func(p process) string { return p.command }},
	{"stat", "STAT", func(p process) string { return p.state }},
	{"rss", "RSS", func(p process) string { return strconv.FormatInt(p.rss>>10, 10) }},
	{"vsz", "VSZ", func(p process) string { return strconv.FormatInt(p.vsz>>10, 10) }},
}

func topColumns(args string) ([]column, error) {
	var names []string
	fields := strings.Fields(args)
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		switch {
		case f == "-ef", f == "-e", f == "-f", f == "ef", f == "-A":
		case f == "aux", f == "-aux":
			names = []string{"user", "pid", "vsz", "rss", "tty", "stat", "time", "command"}
		case (f == "-o" || f == "-eo" || f == "o") && i+1 < len(fields):
			i++
			names = append(names, strings.Split(fields[i], ",")...)
		case strings.HasPrefix(f, "-o"), strings.HasPrefix(f, "-eo"):
			_, list, _ := strings.Cut(f, "o")
			names = append(names, strings.Split(list, ",")...)
		default:
			return nil, invalid("ps: unsupported option %q: Berth knows -ef, aux and -o with columns", f)
		}
	}
	if names == nil {
		return columns[:8], nil
	}
	var out []column
	for _, name := range names {
		name, title, renamed := strings.Cut(name, "=")
		i := slices.IndexFunc(columns, func(c column) bool { return c.name == strings.ToLower(name) })
		if i < 0 {
			return nil, invalid("ps: unknown column %q", name)
		}
		col := columns[i]
		if renamed && title != "" {
			col.title = title
		}
		out = append(out, col)
	}
	if !slices.ContainsFunc(out, func(c column) bool { return c.name == "pid" }) {
		return nil, invalid("Couldn't find PID field in ps output")
	}
	return out, nil
}

func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(uid)
}

func readProcess(pid int) (process, error) {
	p := process{pid: pid, tty: "?"}
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, gone(err)
	}
	cmdline, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return p, gone(err)
	}
	if info, err := os.Stat(dir); err == nil {
		p.uid = ownerOf(info)
	}
	if err := p.parseStat(stat); err != nil {
		return p, err
	}
	p.command = strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	if p.command == "" {
		p.command = "[" + p.comm + "]"
	}
	return p, nil
}

// gone makes the two errors that a process which has ended gives one.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "no such process") {
		return os.ErrNotExist
	}
	return err
}

// parseStat reads /proc/PID/stat, where the name may hold anything.
func (p *process) parseStat(stat []byte) error {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return errors.New("malformed /proc/PID/stat")
	}
	p.comm = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return errors.New("malformed /proc/PID/stat")
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	p.state, p.ppid = f[0], int(num(1))
	if tty := num(4); tty>>8 >= 136 && tty>>8 < 144 {
		p.tty = "pts/" + strconv.FormatInt(tty&0xff|tty>>12&0xfff00, 10)
	}
	p.cpu = time.Duration(num(11)+num(12)) * (time.Second / 100)
	p.start = bootTime().Add(time.Duration(num(19)) * (time.Second / 100))
	p.vsz, p.rss = num(20), num(21)*int64(os.Getpagesize())
	return nil
}
