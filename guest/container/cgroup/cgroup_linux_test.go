package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

func TestSettings(t *testing.T) {
	dev := specs.LinuxBlockIODevice{Major: 8, Minor: 16}
	for _, test := range []struct {
		name string
		r    specs.LinuxResources
		want string
	}{
		{"nothing", specs.LinuxResources{}, ""},
		{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))}},
			"memory.swap.max=50 memory.max=100 memory.low=50"},
		{"no swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))}}, "memory.swap.max=0 memory.max=100"},
		{"unlimited memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}, "memory.swap.max=max memory.max=max"},
		{"unlimited swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5)), Swap: ptr(int64(-1))}}, "memory.swap.max=max memory.max=5"},
		{"memory 0 means unset", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(0)), Swap: ptr(int64(0))}}, ""},
		//lint:ignore SA1019 what is deprecated must not disturb
		{"ignored", specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: ptr(int64(7)), Swappiness: ptr(uint64(60)), DisableOOMKiller: ptr(true)}}, ""},
		{"cpu", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(10)), Cpus: "0-1,3", Mems: "0"}},
			"cpu.weight=100 cpu.max.burst=10 cpu.max=50000 100000 cpuset.cpus=0-1,3 cpuset.mems=0"},
		{"cpu without limit", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(1000))}}, "cpu.max=max 1000"},
		{"cpu idle beats shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(2))}}, "cpu.idle=1"},
		{"block", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000)),
			WeightDevice:          []specs.LinuxWeightDevice{{LinuxBlockIODevice: dev, Weight: ptr(uint16(10))}},
			ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: 7}}, ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev}}}},
			"io.bfq.weight=1000 io.weight=10000 io.bfq.weight=8:16 10 io.weight=8:16 1 io.max=8:16 rbps=7 io.max=8:16 wiops=max"},
		{"huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}}}, "hugetlb.2MB.max=9 hugetlb.2MB.rsvd.max=9"},
		{"rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx": {HcaHandles: ptr(uint32(3)), HcaObjects: ptr(uint32(4))}}}, "rdma.max=mlx hca_handle=3 hca_object=4"},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "10", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"}}, "io.max=8:0 rbps=1 io.max=8:16 rbps=2 memory.high=10"},
	} {
		list, err := settings(&test.r)
		var got []string
		for _, s := range list {
			got = append(got, s.file+"="+s.value)
		}
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", test.name, err, strings.Join(got, " "), test.want)
		}
	}
}

func TestBadResources(t *testing.T) {
	for name, r := range map[string]specs.LinuxResources{
		"memory":       {Memory: &specs.LinuxMemory{Limit: ptr(int64(-2))}},
		"reservation":  {Memory: &specs.LinuxMemory{Reservation: ptr(int64(-2))}},
		"swap alone":   {Memory: &specs.LinuxMemory{Swap: ptr(int64(5))}},
		"swap small":   {Memory: &specs.LinuxMemory{Limit: ptr(int64(6)), Swap: ptr(int64(5))}},
		"swap":         {Memory: &specs.LinuxMemory{Swap: ptr(int64(-5))}},
		"real time":    {CPU: &specs.LinuxCPU{RealtimeRuntime: ptr(int64(1))}},
		"idle":         {CPU: &specs.LinuxCPU{Idle: ptr(int64(2))}},
		"cpus":         {CPU: &specs.LinuxCPU{Cpus: "1-0"}},
		"cpus lines":   {CPU: &specs.LinuxCPU{Cpus: "1\n2"}},
		"mems":         {CPU: &specs.LinuxCPU{Mems: "x"}},
		"weight":       {BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(9))}},
		"page size":    {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB"}}},
		"rdma":         {Rdma: map[string]specs.LinuxRdma{"a b": {}}},
		"unified path": {Unified: map[string]string{"../memory.max": "1"}},
		"unified own":  {Unified: map[string]string{"cgroup.procs": "1"}},
		"unified bare": {Unified: map[string]string{"memory": "1"}},
		"device type":  {Devices: []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}}},
		"access":       {Devices: []specs.LinuxDeviceCgroup{{Type: "c", Access: "q"}}},
		"major":        {Devices: []specs.LinuxDeviceCgroup{{Type: "c", Major: ptr(int64(-7)), Access: "r"}}},
	} {
		if err := Check(&r); !errors.Is(err, ErrResources) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWeight(t *testing.T) {
	last := uint64(0)
	for shares := uint64(0); shares < 300000; shares += 7 {
		w := cpuWeight(shares)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("%d shares are weight %d after %d", shares, w, last)
		}
		last = w
	}
	if cpuWeight(1024) != 100 || cpuWeight(2) != 1 || cpuWeight(262144) != 10000 {
		t.Error(cpuWeight(1024), cpuWeight(2), cpuWeight(262144))
	}
}

func TestClean(t *testing.T) {
	for path, want := range map[string]string{"a": "/a", "/a//b/": "/a/b", "/": "", "": "", "/a/../b": "", "a\nb": "", "/cgroup.procs": "", "/a/" + strings.Repeat("x", 256): ""} {
		got, err := Clean(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", path, got, err)
		}
	}
}

// interpret runs a device program, as the kernel would.
func interpret(t *testing.T, prog []insn, kind, access, major, minor uint32) bool {
	t.Helper()
	context := map[int16]uint32{0: kind | access<<16, 4: major, 8: minor}
	var r [6]uint32
	for pc, steps := 0, 0; ; pc++ {
		if steps++; pc < 0 || pc >= len(prog) || steps > 10000 {
			t.Fatal("the program runs away")
		}
		in := prog[pc]
		switch in.op {
		case opLoadWord:
			r[in.dst] = context[in.off]
		case opAnd32:
			r[in.dst] &= uint32(in.imm)
		case opShift32:
			r[in.dst] >>= uint32(in.imm)
		case opMove32:
			r[in.dst] = uint32(in.imm)
		case opExit:
			return r[rResult] == 1
		case opJumpNE32:
			if r[in.dst] != uint32(in.imm) {
				pc += int(in.off)
			}
		case opJumpSet:
			if r[in.dst]&uint32(in.imm) != 0 {
				pc += int(in.off)
			}
		case opJump:
			pc += int(in.off)
		default:
			t.Fatalf("operation %#x", in.op)
		}
	}
}

func TestDevices(t *testing.T) {
	rule := func(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
		if major >= 0 {
			r.Major = &major
		}
		if minor >= 0 {
			r.Minor = &minor
		}
		return r
	}
	rules := []specs.LinuxDeviceCgroup{
		rule(false, "", -1, -1, "rwm"),
		rule(true, "c", 10, -1, "rwm"),
		rule(false, "c", 10, 200, "w"),
		rule(true, "b", 8, 0, "r"),
		rule(true, "b", 8, 0, "w"),
		rule(false, "c", 1, 3, "rwm"), // null stays usable: the defaults come last
	}
	prog, err := deviceProgram(rules)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		kind, access, major, minor uint32
		want                       bool
	}{
		{typeChar, accRead, 10, 5, true}, {typeChar, accRead | accWrite, 10, 5, true},
		{typeChar, accRead, 10, 200, true}, {typeChar, accWrite, 10, 200, false}, {typeChar, accRead | accWrite, 10, 200, false},
		{typeBlock, accRead | accWrite, 8, 0, true}, {typeBlock, accRead, 8, 1, false}, {typeChar, accRead, 8, 0, false},
		{typeBlock, accMknod, 8, 1, true}, {typeBlock, accMknod | accRead, 8, 1, false},
		{typeChar, accRead | accWrite, 1, 3, true}, {typeChar, accRead, 1, 1, false}, {typeChar, accWrite, 136, 77, true},
	} {
		if got := interpret(t, prog, test.kind, test.access, test.major, test.minor); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
	none, err := deviceProgram(nil)
	if err != nil || interpret(t, none, typeBlock, accRead, 8, 0) || !interpret(t, none, typeChar, accRead, 1, 5) {
		t.Error("no rules: only the usual devices are allowed", err)
	}
	if prog, err := deviceProgram([]specs.LinuxDeviceCgroup{rule(false, "c", 1, 1, "r"), rule(true, "a", -1, -1, "rwm")}); prog != nil || err != nil {
		t.Error("all allowed: no program is needed", err)
	}
}

func TestParse(t *testing.T) {
	io := parseIO("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1 \n\nbroken\n9:9 rbytes=x wbytes\n")
	if len(io) != 2 || io[0] != (IOStats{8, 0, 1, 2, 3, 4, 5, 6}) || io[1] != (IOStats{Major: 9, Minor: 9}) {
		t.Errorf("%+v", io)
	}
	if parseNumber("max\n") != math.MaxUint64 || parseNumber("7\n") != 7 || parseNumber("") != 0 {
		t.Error("parseNumber")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("8:0 rbytes=1\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseIO(s)
		parseKeyed(s)
	})
}

func needV2(t *testing.T) {
	t.Helper()
	have, err := Available()
	if os.Getuid() != 0 || err != nil || !strings.Contains(strings.Join(have, " "), "memory") {
		t.Skipf("needs root and a cgroup v2 with all controllers (run by scripts/invm): %v %v", have, err)
	}
}

func TestGroup(t *testing.T) {
	needV2(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20)), Reservation: ptr(int64(1 << 20))},
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(5000)), Cpus: "0"},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(20))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))},
		Unified: map[string]string{"memory.high": "60000000"},
	}
	g, err := Create("/berth-cgroup-test/one", r)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Delete(ctx)
	if err := errors.Join(g.Set(r), g.SetPids(r), g.SetDevices(nil), g.SetDevices(nil)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.low": "1048576", "memory.high": "59998208", "pids.max": "20",
		"cpu.max": "20000 100000", "cpu.max.burst": "5000", "cpuset.cpus": "0", "cpu.weight": fmt.Sprint(cpuWeight(512)),
	} {
		if got := strings.TrimSpace(g.text(file)); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	dir, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir.Close()
	if err := g.Freeze(ctx); err != nil {
		t.Error(err)
	}
	if frozen, err := g.Frozen(); !frozen || err != nil {
		t.Error(frozen, err)
	}
	if err := g.Thaw(ctx); err != nil {
		t.Error(err)
	}
	pids, err := g.PIDs()
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Error(pids, err)
	}
	if _, err := Create(g.Path(), nil); err == nil {
		t.Error("a group with a process in it was taken over")
	}
	s, err := g.Stats()
	if err != nil || s.Memory.Limit != 64<<20 || s.Memory.Usage == 0 || s.Pids.Current != 1 || s.Pids.Limit != 20 || len(s.Memory.Stat) < 20 {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := g.Sub("below/it"); err != nil {
		t.Error(err)
	}
	if err := g.Freeze(ctx); err != nil { // Delete must get through this too
		t.Error(err)
	}
	if err := g.Delete(ctx); err != nil || g.Exists() {
		t.Error(err)
	}
	if err := g.Delete(ctx); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if pids, err := g.PIDs(); err != nil || len(pids) != 0 {
		t.Error(pids, err)
	}
	os.Remove(strings.TrimSuffix(g.Dir(), "/one"))
}
