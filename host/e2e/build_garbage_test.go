//go:build linux

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/moby/client"
)

// TestBuildGarbage: on a disk that is far too small for all that is built, what was
// built long ago goes by itself, and neither what was built last nor an image.
func TestBuildGarbage(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	h.bootWith(t, "disk: 1GiB\n")
	c := h.berth()
	step := func(n int) string {
		return buildIn(t, fmt.Sprintf("FROM hello\nRUN : %d; head -c 100000000 /dev/zero > /big && echo %d > /n\nCMD cat /n && wc -c < /big", n, n))
	}
	build := func(n int, more ...string) (ran int) {
		t.Helper()
		r := c.exec(append(append([]string{"build", "--progress", "plain"}, more...), step(n))...)
		if r.code != 0 {
			t.Fatalf("build %d: %s", n, r)
		}
		steps, _ := ranSteps(r.err)
		return len(steps)
	}
	// A fifth of the disk is to be free, less what only root may fill.
	room := func() bool {
		mib, err := strconv.Atoi(c.ok(t, "ssh", "--", `df -m /var/lib/berth | awk 'END { print $4 }'`))
		if err != nil {
			t.Fatal(err)
		}
		return mib > 130
	}
	image := func() {
		t.Helper()
		if got := c.ok(t, "run", "--rm", "kept"); got != "0\n100000000" {
			t.Errorf("the image prints %q", got)
		}
	}

	build(0, "-t", "kept")
	const builds = 14
	for n := 1; n <= builds; n++ {
		build(n, "-o", "type=cacheonly") // however soon after the one before
	}
	eventually(t, "room on the disk", room)
	image()
	if build(builds, "-o", "type=cacheonly") != 0 {
		t.Error("what was built last is gone")
	}
	if build(1, "-o", "type=cacheonly") != 1 {
		t.Error("what was built first is still there")
	}

	usage := func() (count int, size int64) {
		t.Helper()
		u, err := h.engine(t).DiskUsage(t.Context(), client.DiskUsageOptions{BuildCache: true, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if int(u.BuildCache.TotalCount) != len(u.BuildCache.Items) {
			t.Errorf("system df counts %d records and names %d", u.BuildCache.TotalCount, len(u.BuildCache.Items))
		}
		return len(u.BuildCache.Items), u.BuildCache.TotalSize
	}
	count, size := usage()
	if said := strings.Count(c.ok(t, "buildx", "du", "--verbose"), "\nType:"); said != count || size < 200e6 || size > 8*(1<<30)/10 {
		t.Errorf("system df has %d records of %d bytes, buildx du %d", count, size, said)
	}
	for _, b := range h.clients() {
		b.ok(t, "builder", "prune", "-f", "--keep-storage", "250MB")
		if _, size := usage(); size > 250e6 || size < 100e6 {
			t.Errorf("%s: of the cache 250 MB should stay, and %d bytes are there", b.name, size)
		}
	}
	if build(1, "-o", "type=cacheonly") != 0 {
		t.Error("what was used last did not stay")
	}
	c.ok(t, "builder", "prune", "-a", "-f")
	if count, _ := usage(); count != 0 {
		t.Errorf("after a prune of all, %d records are there", count)
	}
	image()
}
