package runspec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// minMemory is docker's smallest memory limit, in bytes.
const minMemory = 6 << 20

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// CheckResources refuses limits that make no sense, in docker's words. ncpu is
// the number of the machine's processors. With update they are to go with others.
func CheckResources(r *container.Resources, ncpu int, update bool) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0 && !update:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(ncpu)*1e9:
		return invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", ncpu, ncpu)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1e6):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	if hasNil(r.Ulimits) || hasNil(r.BlkioWeightDevice) || hasNil(r.BlkioDeviceReadBps) || hasNil(r.BlkioDeviceWriteBps) ||
		hasNil(r.BlkioDeviceReadIOps) || hasNil(r.BlkioDeviceWriteIOps) {
		return invalid("invalid resource limits: a list holds null")
	}
	if err := checkSet(r.CpusetCpus, ncpu, "cpuset cpus", "CPUs"); err != nil {
		return err
	}
	return checkSet(r.CpusetMems, 1, "cpuset mems", "memory nodes") // the machine has one
}

func hasNil[T any](list []*T) bool { return slices.Contains(list, nil) }

// checkSet refuses a list of numbers and ranges that is none, or names what is not
// among the first n.
func checkSet(list string, n int, field, what string) error {
	if list == "" {
		return nil
	}
	var highest uint64
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, ferr := strconv.ParseUint(first, 10, 16)
		to, terr := strconv.ParseUint(last, 10, 16)
		if err := cmp.Or(ferr, terr); err != nil || from > to {
			return invalid("Invalid value %s for %s: invalid format: %s", list, field, part)
		}
		highest = max(highest, to)
	}
	if highest < uint64(n) {
		return nil
	}
	available := "0"
	if n > 1 {
		available = fmt.Sprintf("0-%d", n-1)
	}
	return invalid("Requested %s are not available - requested %s, available: %s", what, list, available)
}

// Resources turns limits into the OCI's.
func Resources(r *container.Resources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Memory: memory(r), CPU: cpu(r)}
	if r.PidsLimit != nil {
		limit := *r.PidsLimit
		if limit <= 0 {
			limit = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	io, err := blockIO(r)
	out.BlockIO = io
	return out, err
}

func memory(r *container.Resources) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
		// Docker allows as much swap again as memory when nothing is said.
		swap := 2 * r.Memory
		if r.MemorySwap != 0 {
			swap = r.MemorySwap
		}
		m.Swap = &swap
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

func cpu(r *container.Resources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		c.Shares = &shares
	}
	if r.NanoCPUs > 0 {
		period, quota := uint64(100_000), r.NanoCPUs*100_000/1e9
		c.Period, c.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if *c == (specs.LinuxCPU{}) {
		return nil
	}
	return c
}

func blockIO(r *container.Resources) (*specs.LinuxBlockIO, error) {
	b := &specs.LinuxBlockIO{}
	used := false
	if r.BlkioWeight > 0 {
		b.Weight, used = &r.BlkioWeight, true
	}
	for _, w := range r.BlkioWeightDevice {
		major, minor, err := deviceNumbers(w.Path)
		if err != nil {
			return nil, err
		}
		d := specs.LinuxWeightDevice{Weight: &w.Weight}
		d.Major, d.Minor = major, minor
		b.WeightDevice, used = append(b.WeightDevice, d), true
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, dev := range t.from {
			major, minor, err := deviceNumbers(dev.Path)
			if err != nil {
				return nil, err
			}
			d := specs.LinuxThrottleDevice{Rate: dev.Rate}
			d.Major, d.Minor = major, minor
			*t.to, used = append(*t.to, d), true
		}
	}
	if !used {
		return nil, nil
	}
	return b, nil
}

// deviceRule reads a rule as docker's --device-cgroup-rule writes it: "c 42:* rwm".
func deviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	fields := strings.Fields(s)
	bad := invalid("invalid device cgroup rule format: '%s'", s)
	if len(fields) != 3 || len(fields[0]) != 1 || !strings.Contains("abc", fields[0]) ||
		strings.Trim(fields[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	major, minor, ok := strings.Cut(fields[1], ":")
	if !ok {
		return specs.LinuxDeviceCgroup{}, bad
	}
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: fields[0], Access: fields[2]}
	for _, n := range []struct {
		in  string
		out **int64
	}{{major, &rule.Major}, {minor, &rule.Minor}} {
		if n.in == "*" {
			continue
		}
		v, err := strconv.ParseUint(n.in, 10, 32)
		if err != nil {
			return specs.LinuxDeviceCgroup{}, bad
		}
		signed := int64(v)
		*n.out = &signed
	}
	return rule, nil
}
