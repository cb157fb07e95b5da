package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrResources is wrapped by errors that lie in the resources asked for.
var ErrResources = errors.New("linux.resources")

// setting is one write to a control file. A list of them is a conversion's whole
// result, so that conversions can be tested without a kernel.
type setting struct {
	file, value string
	field       string // in the specification, for errors
	optional    bool   // a kernel without the file is fine
}

// Check reports the first thing wrong with r, purely.
func Check(r *specs.LinuxResources) error {
	if _, err := settings(r); err != nil {
		return err
	}
	_, err := deviceProgram(r.Devices)
	return err
}

// Set applies the limits that r names and keeps all others, except the number of
// processes (SetPids) and devices (SetDevices).
func (g *Group) Set(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := g.checkMemory(r.Memory); err != nil {
		return err
	}
	list, err := settings(r)
	if err != nil {
		return err
	}
	return g.apply(list)
}

// SetPids limits the number of processes and threads, if r says so. It is apart
// from Set because a container's first process, being a Go program, needs a few
// threads before it gives way to the user's.
func (g *Group) SetPids(r *specs.LinuxResources) error {
	if r == nil || r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	value := "max"
	if n := *r.Pids.Limit; n >= 0 {
		value = strconv.FormatInt(max(n, 1), 10)
	}
	return g.apply([]setting{{file: "pids.max", value: value, field: "pids.limit"}})
}

func (g *Group) apply(list []setting) error {
	var retry []setting
	for _, s := range list {
		err := write(g.dir+"/"+s.file, s.value)
		switch {
		case err == nil, s.optional && gone(err):
		case errors.Is(err, unix.EINVAL) && (s.file == "cpu.max.burst" || s.file == "memory.swap.max"):
			retry = append(retry, s) // bounded by a value that comes later in the list
		default:
			return s.failed(err)
		}
	}
	for _, s := range retry {
		if err := write(g.dir+"/"+s.file, s.value); err != nil {
			return s.failed(err)
		}
	}
	return nil
}

func (s setting) failed(err error) error {
	if gone(err) {
		return fmt.Errorf("%w: %s: this kernel has no %s", ErrResources, s.field, s.file)
	}
	return fmt.Errorf("%w: %s: %w", ErrResources, s.field, err)
}

// checkMemory refuses a limit below what is in use already, when asked to.
func (g *Group) checkMemory(m *specs.LinuxMemory) error {
	if m == nil || m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || m.Limit == nil || *m.Limit <= 0 {
		return nil
	}
	if used := g.number("memory.current"); used > uint64(*m.Limit) {
		return fmt.Errorf("%w: memory.limit: %d bytes are in use, more than the limit %d", ErrResources, used, *m.Limit)
	}
	return nil
}

// settings converts everything but pids and devices, in the order of writing.
func settings(r *specs.LinuxResources) ([]setting, error) {
	var all []setting
	for _, convert := range []func(*specs.LinuxResources) ([]setting, error){
		memory, cpu, blockIO, others, unified,
	} {
		list, err := convert(r)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrResources, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func memory(r *specs.LinuxResources) ([]setting, error) {
	m := r.Memory
	if m == nil {
		return nil, nil
	}
	var list []setting
	swap, err := swapMax(m)
	if err != nil {
		return nil, err
	}
	if swap != "" {
		list = append(list, setting{"memory.swap.max", swap, "memory.swap", swap == "0" || swap == "max"})
	}
	if m.Limit != nil && *m.Limit != 0 {
		if *m.Limit < -1 {
			return nil, fmt.Errorf("memory.limit: %d is negative", *m.Limit)
		}
		list = append(list, setting{"memory.max", limit(*m.Limit), "memory.limit", false})
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		if *m.Reservation < -1 {
			return nil, fmt.Errorf("memory.reservation: %d is negative", *m.Reservation)
		}
		list = append(list, setting{"memory.low", limit(*m.Reservation), "memory.reservation", false})
	}
	return list, nil
}

// swapMax converts swap, which the OCI counts together with memory.
func swapMax(m *specs.LinuxMemory) (string, error) {
	var mem, swap int64
	if m.Limit != nil {
		mem = *m.Limit
	}
	if m.Swap != nil {
		swap = *m.Swap
	}
	switch {
	case swap == 0 && mem == -1:
		return "max", nil // an unlimited container has unlimited swap
	case swap == 0:
		return "", nil
	case swap == -1:
		return "max", nil
	case swap < 0:
		return "", fmt.Errorf("memory.swap: %d is negative", swap)
	case mem <= 0:
		return "", errors.New("memory.swap: needs memory.limit too, whose sum with swap it is")
	case swap < mem:
		return "", fmt.Errorf("memory.swap: %d is less than memory.limit %d, which it includes", swap, mem)
	}
	return strconv.FormatInt(swap-mem, 10), nil
}

func cpu(r *specs.LinuxResources) ([]setting, error) {
	c := r.CPU
	if c == nil {
		return nil, nil
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 || c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		return nil, errors.New("cpu.realtimeRuntime: cgroup v2 has no real-time limits")
	}
	var list []setting
	add := func(file, value, field string) { list = append(list, setting{file, value, field, false}) }
	if c.Idle != nil {
		if *c.Idle != 0 && *c.Idle != 1 {
			return nil, fmt.Errorf("cpu.idle: %d is neither 0 nor 1", *c.Idle)
		}
		add("cpu.idle", strconv.FormatInt(*c.Idle, 10), "cpu.idle")
	}
	if c.Shares != nil && *c.Shares != 0 && (c.Idle == nil || *c.Idle == 0) {
		add("cpu.weight", strconv.FormatUint(cpuWeight(*c.Shares), 10), "cpu.shares")
	}
	if c.Burst != nil {
		add("cpu.max.burst", strconv.FormatUint(*c.Burst, 10), "cpu.burst")
	}
	if value := cpuMax(c); value != "" {
		add("cpu.max", value, "cpu.quota")
	}
	for _, set := range [][3]string{{"cpuset.cpus", c.Cpus, "cpu.cpus"}, {"cpuset.mems", c.Mems, "cpu.mems"}} {
		if set[1] == "" {
			continue
		}
		if !validSet(set[1]) {
			return nil, fmt.Errorf("%s: %q is not a list such as 0-2,4", set[2], set[1])
		}
		add(set[0], set[1], set[2])
	}
	return list, nil
}

func cpuMax(c *specs.LinuxCPU) string {
	var quota int64
	var period uint64
	if c.Quota != nil {
		quota = *c.Quota
	}
	if c.Period != nil {
		period = *c.Period
	}
	if quota == 0 && period == 0 {
		return ""
	}
	value := "max"
	if quota > 0 {
		value = strconv.FormatInt(quota, 10)
	}
	if period != 0 {
		value += " " + strconv.FormatUint(period, 10)
	}
	return value
}

// cpuWeight converts shares (2 to 262144, by default 1024) to a weight (1 to
// 10000, by default 100) along a curve through the three points, as runc does.
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

func validSet(s string) bool {
	for _, part := range strings.Split(s, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return false
		}
		if !ranged {
			continue
		}
		if b, err := strconv.ParseUint(hi, 10, 16); err != nil || b < a {
			return false
		}
	}
	return true
}

func blockIO(r *specs.LinuxResources) ([]setting, error) {
	b := r.BlockIO
	if b == nil {
		return nil, nil
	}
	var list []setting
	weight := func(w uint16, prefix, field string) error {
		if w < 10 || w > 1000 {
			return fmt.Errorf("%s: %d is not between 10 and 1000", field, w)
		}
		// Whichever of the two the kernel has: the BFQ scheduler's own, or io.weight.
		list = append(list,
			setting{"io.bfq.weight", prefix + strconv.Itoa(int(w)), field, true},
			setting{"io.weight", prefix + strconv.Itoa(1+(int(w)-10)*9999/990), field, true})
		return nil
	}
	if b.Weight != nil && *b.Weight != 0 {
		if err := weight(*b.Weight, "", "blockIO.weight"); err != nil {
			return nil, err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight == nil || *d.Weight == 0 {
			continue
		}
		if err := weight(*d.Weight, device(d.LinuxBlockIODevice)+" ", "blockIO.weightDevice"); err != nil {
			return nil, err
		}
	}
	for _, t := range []struct {
		devices    []specs.LinuxThrottleDevice
		key, field string
	}{
		{b.ThrottleReadBpsDevice, "rbps", "blockIO.throttleReadBpsDevice"},
		{b.ThrottleWriteBpsDevice, "wbps", "blockIO.throttleWriteBpsDevice"},
		{b.ThrottleReadIOPSDevice, "riops", "blockIO.throttleReadIOPSDevice"},
		{b.ThrottleWriteIOPSDevice, "wiops", "blockIO.throttleWriteIOPSDevice"},
	} {
		for _, d := range t.devices {
			rate := "max"
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			list = append(list, setting{"io.max", device(d.LinuxBlockIODevice) + " " + t.key + "=" + rate, t.field, false})
		}
	}
	return list, nil
}

func device(d specs.LinuxBlockIODevice) string {
	return strconv.FormatInt(d.Major, 10) + ":" + strconv.FormatInt(d.Minor, 10)
}

// others converts huge pages and RDMA.
func others(r *specs.LinuxResources) ([]setting, error) {
	var list []setting
	for _, h := range r.HugepageLimits {
		if !validName(h.Pagesize) {
			return nil, fmt.Errorf("hugepageLimits: invalid page size %q", h.Pagesize)
		}
		value := strconv.FormatUint(h.Limit, 10)
		list = append(list,
			setting{"hugetlb." + h.Pagesize + ".max", value, "hugepageLimits", false},
			setting{"hugetlb." + h.Pagesize + ".rsvd.max", value, "hugepageLimits", true})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Rdma)) {
		if !validName(name) {
			return nil, fmt.Errorf("rdma: invalid device name %q", name)
		}
		value := name
		if n := r.Rdma[name].HcaHandles; n != nil {
			value += " hca_handle=" + strconv.FormatUint(uint64(*n), 10)
		}
		if n := r.Rdma[name].HcaObjects; n != nil {
			value += " hca_object=" + strconv.FormatUint(uint64(*n), 10)
		}
		list = append(list, setting{"rdma.max", value, "rdma", false})
	}
	return list, nil
}

func validName(s string) bool {
	return s != "" && !strings.ContainsAny(s, "/ \n\x00") && len(s) < 64
}

// unified takes files by name. A value may have several lines: one write each.
func unified(r *specs.LinuxResources) ([]setting, error) {
	var list []setting
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		controller, _, ok := strings.Cut(key, ".")
		if !ok || controller == "" || strings.ContainsAny(key, "/\x00\n") || strings.Contains(key, "..") {
			return nil, fmt.Errorf("unified: %q is not a control file's name", key)
		}
		if controller == "cgroup" {
			return nil, fmt.Errorf("unified: %q belongs to the runtime", key)
		}
		for line := range strings.Lines(r.Unified[key]) {
			if line = strings.TrimSpace(line); line != "" {
				list = append(list, setting{key, line, "unified: " + key, false})
			}
		}
	}
	return list, nil
}

// Available lists the controllers that the kernel offers.
func Available() ([]string, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(root + "/cgroup.controllers")
	return strings.Fields(string(b)), err
}
