package engine

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// infancy is how long after its start a program may not have got round to
	// catching signals.
	infancy = 300 * time.Millisecond
	// infancyStep is how often it is looked whether it has.
	infancyStep = 2 * time.Millisecond
)

// awaitHandler waits until a container that has only just begun catches sig, if it
// will: the kernel drops what the first process of a PID namespace does not catch,
// and a client that starts and kills at once would have killed nothing.
func (c *Container) awaitHandler(ctx context.Context, sig syscall.Signal) {
	c.mu.Lock()
	r, exited, age, mode := c.run, c.exited, time.Since(c.rec.State.StartedAt), c.rec.HostConfig.PidMode
	c.mu.Unlock()
	if r == nil || sig == syscall.SIGKILL || mode.IsHost() || mode.IsContainer() || age < 0 {
		return
	}
	for left := infancy - age; left > 0 && !heeds(r.pid, sig); left -= infancyStep {
		if c.waitExit(ctx, exited, infancyStep) || ctx.Err() != nil {
			return
		}
	}
}

// heeds reports whether a process catches or ignores sig, or is gone.
func heeds(pid int, sig syscall.Signal) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigCgt" && name != "SigIgn" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || mask>>(uint(sig)-1)&1 == 1 {
			return true
		}
	}
	return false
}
