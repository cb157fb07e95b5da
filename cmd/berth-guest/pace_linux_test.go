package main

import (
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	for mb, want := range map[uint64]int{0: 400, 1: 400, 4: 400, 5: 200, 8: 200, 9: 100, 16: 100, 17: 50, 32: 50, 1000: 50} {
		if got := percentFor(mb << 20); got != want {
			t.Errorf("%d MB in use: %d percent, want %d", mb, got, want)
		}
	}
}

// TestPaceHeap has a process of its own, whose heap nobody else uses.
func TestPaceHeap(t *testing.T) {
	const variable = "BERTH_TEST_PACE"
	if os.Getenv(variable) == "" {
		c := exec.Command(os.Args[0], "-test.run=^TestPaceHeap$")
		c.Env = append(os.Environ(), variable+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	paceHeap()
	percent := func() int {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
	await := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); percent() != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d percent, want %d", percent(), want)
			}
			runtime.GC()
		}
	}
	await(mostPercent)
	held := make([]byte, 40<<20)
	await(leastPercent)
	runtime.KeepAlive(held)
	held = nil
	await(mostPercent)
}
