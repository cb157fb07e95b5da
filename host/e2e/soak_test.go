//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestSoak makes and removes 500 containers, 10 at a time, with ports, volumes
// and networks, and looks at what is left in the VM.
func TestSoak(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.berth()
	c.ok(t, "network", "create", "soak")
	round := func(n, atOnce int) {
		var wait sync.WaitGroup
		slots := make(chan struct{}, atOnce)
		for i := range n {
			slots <- struct{}{}
			wait.Go(func() {
				defer func() { <-slots }()
				args := []string{"run", "--rm"}
				switch i % 5 {
				case 0:
					args = append(args, "-p", "127.0.0.1:0:80")
				case 1:
					args = append(args, "-v", "/data")
				case 2:
					args = append(args, "--network", "soak")
				case 3:
					args = append(args, "--network", "none", "--memory", "32m")
				}
				want := fmt.Sprintf("container %d", i)
				if r := c.exec(append(args, "hello", "echo", want)...); r.code != 0 || strings.TrimSpace(r.out) != want {
					t.Errorf("%s", r)
				}
			})
		}
		wait.Wait()
	}
	round(20, 10)
	before := inVM(t, h)
	round(500, 10)
	checkNothingLeft(t, h, before, 10)
	if left := c.ok(t, "ps", "-aq") + c.ok(t, "volume", "ls", "-q"); left != "" {
		t.Errorf("containers or volumes left: %s", left)
	}
}
