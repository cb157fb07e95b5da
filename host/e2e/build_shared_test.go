//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

// layersLeft says what the store's directory of layers has that it should not: links
// that lead nowhere, and shared files that no link leads to.
func (h *home) layersLeft(t testing.TB) string {
	t.Helper()
	return h.berth().ok(t, "ssh", "--", `cd /var/lib/berth/images/snapshots/snapshots && for l in *; do [ -e $l/fs ] || echo broken $l; done;`+
		`for d in ../../trees/*; do [ ! -e $d ] || ls -l | grep -q ${d##*/} || echo unused $d; done`)
}

// TestBuildLayers: an image and the cache of its build have the same files, once,
// and whichever goes first takes nothing from the other.
func TestBuildLayers(t *testing.T) {
	h := machine(t)
	c := h.berth()
	c.ok(t, "builder", "prune", "-a", "-f")
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello\nRUN mkdir -p /d/old && touch /gone && head -c 3000000 /dev/urandom > /e2e-shared && ln /e2e-shared /second\n" +
			"RUN rm -r /d /gone && mkdir -m 1770 /d && chown 3:4 /d && cp -p /e2e-shared /d/\nCOPY f /f\nCOPY --link f /twice/\nCOPY --link f /twice/\n" +
			`CMD stat -c '%h %a %n' /e2e-shared /d/e2e-shared /d /f; cat /twice/f; ls /gone /d/old 2>&1; true`,
		"f": "from the context\n",
	})
	const want = "2 644 /e2e-shared\n1 644 /d/e2e-shared\n1770 /d\n1 644 /f\nfrom the context"
	check := func(image string) {
		t.Helper()
		got := c.ok(t, "run", "--rm", image)
		got = strings.Replace(got, "2 1770", "1770", 1) // a directory's links
		if !strings.HasPrefix(got, want) || strings.Count(got, "No such file") != 2 {
			t.Errorf("%s prints %q", image, got)
		}
	}
	// The inodes of the file's copies in all layers, one each.
	copies := func() int {
		t.Helper()
		return len(strings.Fields(c.ok(t, "ssh", "--", "find /var/lib/berth -xdev -name e2e-shared -exec stat -c %i {} + | sort -u")))
	}
	kept := func() (images, cache int64) {
		t.Helper()
		u, err := h.engine(t).DiskUsage(t.Context(), client.DiskUsageOptions{Images: true, BuildCache: true})
		if err != nil {
			t.Fatal(err)
		}
		return u.Images.TotalSize >> 20, u.BuildCache.TotalSize >> 20
	}
	noImages, noCache := kept()
	sizes := func(what string, images, cache bool) {
		t.Helper()
		// Two layers have the file of 3 MB, and the blobs that are made of them.
		const mib = 4 * 3000000 >> 20
		i, b := kept()
		i, b = i-noImages, b-noCache
		if images && (i < mib || i > mib+3) || !images && i != 0 || cache && (b < mib || b > mib+3) || !cache && b > 1 {
			t.Errorf("%s: images have %d MiB and the cache %d; there are %d", what, i, b, mib)
		}
	}

	c.ok(t, "build", "-q", "-t", "e2e-shared:1", dir)
	check("e2e-shared:1")
	if n := copies(); n != 2 {
		t.Errorf("the two layers' file is there %d times", n)
	}
	sizes("with an image", true, false)
	c.ok(t, "build", "-q", "-t", "e2e-shared:2", dir) // with another provenance
	sizes("with a second image of the same layers", true, false)
	c.ok(t, "rmi", "e2e-shared:1", "e2e-shared:2")
	sizes("with the cache only", false, true)
	r := c.exec("build", "--progress", "plain", "-t", "e2e-shared:3", dir)
	if ran, cached := ranSteps(r.err); r.code != 0 || len(ran) != 0 || len(cached) != 2 {
		t.Errorf("the removal of an image took the cache: %s", r)
	}
	check("e2e-shared:3")
	c.ok(t, "builder", "prune", "-a", "-f")
	check("e2e-shared:3")
	if n := copies(); n != 2 {
		t.Errorf("after the cache went, the two layers' file is there %d times", n)
	}
	sizes("without the cache", true, false)
	c.ok(t, "rmi", "e2e-shared:3")
	eventually(t, "the end of the layers", func() bool { return copies() == 0 })
	sizes("after all went", false, false)
	if left := h.layersLeft(t); left != "" {
		t.Errorf("among the layers: %s", left)
	}
}

// sealedContext is a build whose image has files with their hashes in /sums, in
// layers that change and remove what is below.
func sealedContext(t testing.TB) string {
	return buildContext(t, map[string]string{"Dockerfile": "FROM hello\nARG ROUND\n" +
		"RUN mkdir /a /b && for i in $(seq 20); do head -c $((i*3000)) /dev/urandom > /a/$i; done; cp -r /a /c; sha256sum /a/* > /sums\n" +
		"RUN rm -r /b /a/1 && mkdir /b && cp /a/2 /a/3 /b/ && echo more >> /a/4 && sha256sum /a/* /b/* > /sums\nCOPY Dockerfile /f\n" +
		"RUN rm -r /c && sha256sum /f >> /sums\nCMD ! ls /a/1 /c 2>/dev/null && sha256sum -c /sums | grep -c OK\n"})
}

// checkSealed runs all images of sealedContext and builds one anew.
func checkSealed(t *testing.T, h *home, dir string, round int) {
	t.Helper()
	c := h.docker()
	const want = "22" // 19 files of /a, 2 of /b, and /f
	images := strings.Fields(c.ok(t, "images", "--format", "{{.Tag}}", "e2e-sealed"))
	for _, tag := range images {
		if r := c.exec("run", "--rm", "e2e-sealed:"+tag); strings.TrimSpace(r.out) != want {
			t.Errorf("of %s files of image %s are well: %s", want, tag, r)
		}
	}
	for i := range 2 { // the first may stand on what the cache has of the last round
		b := h.berth()
		b.ok(t, "build", "-q", "-t", "e2e-sealed:after", "--build-arg", fmt.Sprint("ROUND=", round-i), dir)
		if got := b.ok(t, "run", "--rm", "e2e-sealed:after"); got != want {
			t.Errorf("of %s files of an image made afterwards, %s are well", want, got)
		}
	}
	if left := h.layersLeft(t); left != "" {
		t.Errorf("among the layers: %s", left)
	}
	t.Logf("round %d: %d images", round, len(images))
}

// buildBusily builds, removes and prunes until ctx ends.
func (h *home) buildBusily(ctx context.Context, dir string, round int) (wait func()) {
	c := h.docker()
	c.env = append(c.env, "DOCKER_BUILDKIT=1")
	var busy sync.WaitGroup
	for i := range 2 {
		busy.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("e2e-sealed:%d-%d-%d", round, i, n)
				_ = c.command(ctx, "build", "-q", "-t", name, "--build-arg", fmt.Sprint("ROUND=", round-n%2), dir).Run()
				switch n % 4 {
				case 1:
					_ = c.command(ctx, "rmi", name).Run()
				case 3:
					_ = c.command(ctx, "builder", "prune", "-a", "-f").Run()
				}
			}
		})
	}
	return busy.Wait
}

// TestBuildLayersKilled: an engine that dies while it builds, shares and removes
// layers leaves them whole.
func TestBuildLayersKilled(t *testing.T) {
	needFull(t)
	h := machine(t)
	dir := sealedContext(t)
	for round := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		wait := h.buildBusily(ctx, dir, round)
		time.Sleep(time.Second + time.Duration(rand.IntN(8000))*time.Millisecond)
		h.berth().exec("ssh", "--", "kill -9 $(pidof berth-guest)")
		cancel()
		wait()
		eventually(t, "the engine's return", func() bool { return h.berth().exec("version").code == 0 })
		checkSealed(t, h, dir, round)
		if t.Failed() {
			return
		}
	}
	h.removeSealed(t)
}

func (h *home) removeSealed(t testing.TB) {
	t.Helper()
	c := h.berth()
	for _, tag := range strings.Fields(c.ok(t, "images", "--format", "{{.Tag}}", "e2e-sealed")) {
		c.ok(t, "rmi", "-f", "e2e-sealed:"+tag)
	}
	c.ok(t, "image", "prune", "-f")
	c.ok(t, "builder", "prune", "-a", "-f")
	eventually(t, "the end of the shared layers", func() bool {
		return c.ok(t, "ssh", "--", "find /var/lib/berth -xdev -name sums") == "" && h.layersLeft(t) == ""
	})
}

// TestBuildPowerCuts is the same with the machine's power cut, and what had not been
// flushed lost by chance.
func TestBuildPowerCuts(t *testing.T) {
	needFull(t)
	disk := withVolatileDisk(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	dir := sealedContext(t)
	for round := range 6 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		wait := h.buildBusily(ctx, dir, round)
		time.Sleep(2*time.Second + time.Duration(rand.IntN(12000))*time.Millisecond)
		if err := syscall.Kill(h.status(t).PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nothing is left", func() bool { return len(h.qemus()) == 0 })
		cancel()
		wait()
		if err := h.boot(); err != nil {
			t.Fatal(err)
		}
		checkSealed(t, h, dir, round)
		if t.Failed() {
			return
		}
	}
	h.removeSealed(t)
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if disk.lost == 0 {
		t.Error("no cut lost anything: they proved nothing")
	}
}
