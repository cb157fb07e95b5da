package monitor

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the monitor does all day is what tells it from the other threads: while
// the program is busy it makes hundreds of short sleeps, each a voluntary switch.
func TestRelax(t *testing.T) {
	tid, err := thread()
	if err != nil {
		t.Fatal(err)
	}
	before := sleeps(t, tid)
	if before < 100 {
		t.Fatalf("thread %s made %d sleeps in a busy program: it is not the monitor", tid, before)
	}
	if err := Relax(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(slackFile(tid))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(text)); got != "5000000" {
		t.Errorf("the monitor's slack is %s ns", got)
	}
}

// sleeps keeps the program busy and returns how often the thread slept.
func sleeps(t *testing.T, tid string) int {
	begin := switches(t, tid)
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		// A goroutine that the kernel keeps waiting is what the monitor looks for.
		_ = syscall.Nanosleep(&syscall.Timespec{Nsec: 200_000}, nil)
	}
	return switches(t, tid) - begin
}

func switches(t *testing.T, tid string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/task/" + tid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
