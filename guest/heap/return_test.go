package heap

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// TestReturn has a process of its own, whose memory nobody else uses.
func TestReturn(t *testing.T) {
	const variable = "BERTH_TEST_RETURN"
	if os.Getenv(variable) == "" {
		c := exec.Command(os.Args[0], "-test.run=^TestReturn$")
		c.Env = append(os.Environ(), variable+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	const worth = 1 << 20 // the runtime itself would stop at more
	Return(time.Millisecond, worth)
	for round := range 3 {
		garbage := make([][]byte, 64)
		for i := range garbage {
			garbage[i] = make([]byte, 1<<20)
		}
		runtime.KeepAlive(garbage)
		garbage = nil
		runtime.GC() // as the runtime does by itself
		for deadline := time.Now().Add(30 * time.Second); unused() >= worth; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %d bytes are still held", round, unused())
			}
			runtime.GC() // and again, for the last may have come before it was waited for
		}
	}
}
