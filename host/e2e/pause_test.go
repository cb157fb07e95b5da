//go:build linux

package e2e

import (
	"strings"
	"testing"
)

// TestPause freezes the machine. A client of docker's wakes it, and the container
// that ran goes on.
func TestPause(t *testing.T) {
	h := machine(t)
	c := h.berth()
	c.ok(t, "run", "-d", "--rm", "--name", "patient", "hello", "sleep", "1000")
	defer c.exec("rm", "-f", "patient")
	c.ok(t, "machine", "pause")
	if s := c.ok(t, "machine", "status"); !strings.Contains(s, "running, paused") {
		t.Errorf("status says:\n%s", s)
	}
	c.ok(t, "machine", "resume")
	c.ok(t, "machine", "pause")
	if got := h.docker().ok(t, "ps", "--format", "{{.Names}}", "--filter", "name=patient"); got != "patient" {
		t.Errorf("docker ps: %q", got)
	}
	if s := c.ok(t, "machine", "status"); strings.Contains(s, "paused") {
		t.Errorf("after a client has come, status says:\n%s", s)
	}
}
