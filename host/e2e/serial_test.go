//go:build linux

package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSerial has a machine as QEMU makes it on macOS and Windows: one serial port
// for all streams, and folders by 9P, which pass what folders by virtiofs do.
func TestSerial(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	h.bootWith(t, "streams: serial\n")
	if got := c.sh(t, project(t, nil), "grep -c ' /src 9p ' /proc/self/mounts"); got != "1" {
		t.Errorf("%q folders come by 9P", got)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *home)
	}{
		{"Share", shareWorks}, {"Refused", shareRefused}, {"Links", shareLinks}, {"HidesBerth", shareHidesBerth}, {"Files", shareFiles},
		{"Owners", func(t *testing.T, h *home) { shareOwners(t, h, 0o751) }}, // set-id bits are forgotten
		{"Copy", shareCopy},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h) })
	}
	c.ok(t, "run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "hello", "httpd", "-f", "-h", "/etc")
	port := c.ok(t, "port", "web", "80")
	if body := get(t, "http://"+port+"/hostname"); body == "" {
		t.Error("a published port is silent")
	}
	if out := c.execIn("hello\n", "run", "--rm", "-i", "hello", "cat"); out.out != "hello\n" {
		t.Errorf("%s", out)
	}
}

// TestSave has the machine saved and go on: a container keeps what it has in memory,
// its port is published again, the clock is right. A container with a folder of the
// host cannot be taken along.
func TestSave(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	h.bootWith(t, "streams: serial\n")
	dir := project(t, map[string]string{"a": "from the host"})
	c.ok(t, "run", "-d", "--name", "keeper", "--tmpfs", "/mem", "-p", "127.0.0.1:0:80", "hello", "sh", "-c",
		"echo in memory >/mem/file; exec httpd -f -h /mem")
	port := c.ok(t, "port", "keeper", "80")
	life := c.ok(t, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "keeper")
	boot := c.ok(t, "ssh", "cat /proc/sys/kernel/random/boot_id")

	c.ok(t, "run", "-d", "--name", "user", "-v", dir+":/src", "hello", "sleep", "1000")
	if got := c.exec("machine", "save"); got.code != 1 || !strings.Contains(got.err, "stop it first") {
		t.Errorf("a container uses a folder: %s", got)
	}
	if got := c.ok(t, "exec", "user", "cat", "/src/a"); got != "from the host" {
		t.Errorf("after the refusal the container reads %q", got)
	}
	c.ok(t, "rm", "-f", "user")

	c.ok(t, "machine", "save")
	if s := c.ok(t, "status"); !strings.Contains(s, "stopped, saved") {
		t.Errorf("status says:\n%s", s)
	}
	if got := c.exec("start"); got.code != 0 || strings.Contains(got.err, "warning") {
		t.Fatalf("start: %s", got)
	}
	if got := c.ok(t, "ssh", "cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Error("the machine has booted anew")
	}
	if got := c.ok(t, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "keeper"); got != life {
		t.Errorf("the container is %s, was %s", got, life)
	}
	if got := get(t, "http://"+port+"/file"); got != "in memory\n" {
		t.Errorf("its port says %q", got)
	}
	now, err := strconv.ParseInt(c.ok(t, "ssh", "date +%s"), 10, 64)
	if behind := time.Since(time.Unix(now, 0)); err != nil || behind > 10*time.Second || behind < -2*time.Second {
		t.Errorf("the guest's clock is %s behind: %v", behind, err)
	}
	if got := c.sh(t, dir, "cat a"); got != "from the host" {
		t.Errorf("a new container reads %q", got)
	}
	if got := c.sh(t, dir, "wget -q -O- http://host.docker.internal:1 2>&1 || true"); !strings.Contains(got, "refused") {
		t.Errorf("the network: %q", got)
	}
	c.ok(t, "restart")
	if got := c.ok(t, "ssh", "cat /proc/sys/kernel/random/boot_id"); got == boot {
		t.Error("after a restart the machine is still the old one")
	}
}
