package container

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestLimits(t *testing.T) {
	needCgroup(t)
	spec := testSpec(rootfs(t), "sleep", "1000")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid"}})
	spec.Linux.Resources = &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))},
		CPU:     &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(3))}, // fewer than the threads of a Go program
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mem", Type: "c", Major: 1, Minor: 1}}
	caps := append([]string{"CAP_SYS_RAWIO"}, dockerCaps...)
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	b := start(t, testConfig(t, spec))
	for _, test := range []struct{ script, want string }{
		{"cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max", "0::/\n33554432\n50000 100000\n3"},
		{"head -c 1 /dev/mem 2>&1 || true", "head: /dev/mem: Operation not permitted"},
		{"head -c 3 /dev/zero | wc -c", ""},
	} {
		if test.want == "" {
			continue
		}
		got, err := execIn(t, b.Container, test.script, nil)
		if err != nil || got != test.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", test.script, err, got, test.want)
		}
	}
	if err := b.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(10))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}}); err != nil {
		t.Fatal(err)
	}
	s, err := b.Stats()
	if err != nil || s.Memory.Limit != 48<<20 || s.Pids.Limit != 10 || s.Pids.Current != 1 || s.CPU.UsageMicros == 0 {
		t.Errorf("%+v %v", s, err)
	}
	if err := b.Pause(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if st, err := b.Status(); st != Paused || err != nil {
		t.Error(st, err)
	}
	if _, err := execIn(t, b.Container, "true", nil); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("exec in a paused container: %v", err)
	}
	if err := b.Resume(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Resume(testContext(t)); err == nil {
		t.Error("a running container was resumed")
	}
	if pids, err := b.PIDs(); err != nil || len(pids) != 1 || pids[0] != b.PID() {
		t.Error(pids, err)
	}
	if err := b.Pause(testContext(t)); err != nil { // Delete gets through it
		t.Fatal(err)
	}
}

func TestOOM(t *testing.T) {
	needCgroup(t)
	root := rootfs(t)
	spec := testSpec(root, "sh", "-c", "until test -e /go; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}}
	b := start(t, testConfig(t, spec))
	kills := make(chan uint64, 8)
	done := make(chan error, 1)
	go func() { done <- b.WatchOOM(testContext(t), func(n uint64) { kills <- n }) }()
	time.Sleep(500 * time.Millisecond) // the watch cannot be seen to begin
	if err := os.WriteFile(root+"/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ws, err := b.Wait(testContext(t))
	if err != nil || ws.Signal() != unix.SIGKILL {
		t.Errorf("%#x %v", ws, err)
	}
	select {
	case n := <-kills:
		if n == 0 {
			t.Error("no kill was counted")
		}
	case <-time.After(20 * time.Second):
		t.Error("nothing was reported")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A watch ends with its context too.
	other := start(t, func() Config {
		cfg := testConfig(t, testSpec(rootfs(t), "sleep", "1000"))
		cfg.CgroupPath += "-other"
		return cfg
	}())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := other.WatchOOM(ctx, func(uint64) {}); err != context.DeadlineExceeded {
		t.Error(err)
	}
}

// TestNoMemory makes the first process itself run out of memory.
func TestNoMemory(t *testing.T) {
	needCgroup(t)
	spec := testSpec(rootfs(t), "true")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 10)), Swap: ptr(int64(64 << 10))}}
	cfg := testConfig(t, spec)
	if _, err := create(t, cfg); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("unclear error: %v", err)
	}
	nothingLeft(t, cfg)
}
