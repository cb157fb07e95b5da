package cgroup

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
)

func TestReclaimCache(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name     string
		inactive int    // bytes
		refaults int    // pages, more with each step
		stopped  int    // steps after which the group is in use again, if not 0
		want     uint64 // bytes
	}{
		{name: "nothing to gain", inactive: 31 * mib},
		{name: "all that is unused", inactive: 100 * mib, want: 96 * mib},
		{name: "few read again", inactive: 100 * mib, refaults: 100, want: 96 * mib},
		{name: "in use", inactive: 1000 * mib, refaults: 1100, want: 32 * mib},
		{name: "stopped", inactive: 1000 * mib, stopped: 2, want: 64 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &Group{dir: t.TempDir()}
				set := func(step int) {
					stat := fmt.Sprintf("inactive_file %d\nworkingset_refault_file %d\n", max(0, c.inactive-step*reclaimStep), 5000+step*c.refaults)
					if err := os.WriteFile(g.dir+"/memory.stat", []byte(stat), 0o600); err != nil {
						t.Error(err)
					}
				}
				if err := os.WriteFile(g.dir+"/memory.reclaim", nil, 0o600); err != nil {
					t.Fatal(err)
				}
				set(0)
				steps := 0
				taken, err := g.reclaimCache(func() bool {
					steps++
					set(steps)
					return c.stopped == 0 || steps <= c.stopped
				})
				if err != nil || taken != c.want {
					t.Errorf("%d MiB taken (%v), want %d", taken/mib, err, c.want/mib)
				}
				if b, _ := os.ReadFile(g.dir + "/memory.reclaim"); taken > 0 && string(b) != "33554432" {
					t.Errorf("the kernel was asked for %q", b)
				}
			})
		})
	}
	if _, err := (&Group{dir: t.TempDir()}).reclaimCache(func() bool { return true }); err != nil {
		t.Errorf("without memory.stat: %v", err)
	}
}
