//go:build linux

package e2e

import (
	"fmt"
	"strconv"
	"testing"
)

// TestCacheGoesBack: the page cache that a container leaves behind goes back to the
// host once the engine is idle, also while a container runs.
func TestCacheGoesBack(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.berth()
	c.ok(t, "run", "-d", "--name", "bystander", "hello", "sleep", "1d")
	const size = 400 // MiB
	cached := func() int {
		kib, err := strconv.Atoi(c.ok(t, "ssh", "--", "sed -n 's/^Cached: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
		if err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	qemu := func() (mib int) {
		for _, pid := range children(h.status(t).PID) {
			_, kib := rss(t, pid)
			mib += kib >> 10
		}
		return mib
	}
	c.ok(t, "run", "--rm", "-v", "big:/big", "hello", "sh", "-c", fmt.Sprintf("head -c %d /dev/zero >/big/file; cat /big/file >/dev/null", size<<20))
	full, held := cached(), qemu()
	if full < size || held < size {
		t.Fatalf("%d MiB are cached of a file of %d MiB, and QEMU has %d", full, size, held)
	}
	eventually(t, "the page cache shrinks", func() bool { return cached() < full-size*3/4 })
	eventually(t, "QEMU's memory shrinks", func() bool { return qemu() < held-size/2 })
	t.Logf("cached: %d MiB, then %d; QEMU: %d MiB, then %d", full, cached(), held, qemu())
	c.ok(t, "exec", "bystander", "true")
}
