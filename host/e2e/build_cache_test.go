//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stepEnd is the last word of a step's plain progress.
var stepEnd = regexp.MustCompile(`(?m)^#(\d+) (CACHED|DONE .*)$`)

// ranSteps lists the commands of RUN that a build ran, and those it had in its cache.
func ranSteps(progress string) (ran, cached []string) {
	names := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^#(\d+) \[[^\]]*\] RUN (.*)$`).FindAllStringSubmatch(progress, -1) {
		names[m[1]] = m[2]
	}
	for _, m := range stepEnd.FindAllStringSubmatch(progress, -1) {
		name, isRun := names[m[1]]
		switch {
		case !isRun:
		case m[2] == "CACHED":
			cached = append(cached, name)
		default:
			ran = append(ran, name)
		}
		delete(names, m[1])
	}
	return ran, cached
}

// TestBuildCacheElsewhere: a machine that has nothing builds from a cache that is
// kept elsewhere, in each of the ways there are, and runs no step.
func TestBuildCacheElsewhere(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello AS first\nCOPY f /\nRUN cat /proc/sys/kernel/random/uuid > /early\nFROM hello\nCOPY --from=first /early /\n" +
			"RUN cat /proc/sys/kernel/random/uuid > /late\nCMD [\"cat\", \"/early\", \"/late\"]\n",
		"f": "1",
	})
	ref := func(tag string) string { return suite.registry.image("e2e-cache:" + tag) }
	local := filepath.Join(t.TempDir(), "cache")
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			cold := func() {
				t.Helper()
				c.exec("rmi", "-f", "e2e-warm", ref("inline"))
				c.ok(t, "buildx", "prune", "-a", "-f")
			}
			build := func(args ...string) (ran, cached []string) {
				t.Helper()
				r := c.exec(append(append([]string{"buildx", "build", "--progress=plain"}, args...), dir)...)
				if r.code != 0 {
					t.Fatal(r)
				}
				return ranSteps(r.err)
			}
			cold()
			if ran, cached := build("--push", "-t", ref("inline"), "--cache-to", "type=inline"); len(ran) != 2 || len(cached) != 0 {
				t.Errorf("the first build ran %q and had %q", ran, cached)
			}
			want := c.ok(t, "run", "--rm", ref("inline"))
			build("--cache-to", "type=registry,mode=max,ref="+ref("registry"))
			os.RemoveAll(local)
			build("--cache-to", "type=local,mode=max,dest="+local)
			for _, from := range []struct {
				cache string
				late  bool // it has the last stage only
			}{
				{"type=registry,ref=" + ref("registry"), false},
				{"type=local,src=" + local, false},
				{"type=registry,ref=" + ref("inline"), true},
				{ref("inline"), true},
			} {
				cold()
				ran, cached := build("--load", "-t", "e2e-warm", "--cache-from", from.cache)
				if len(ran) != 0 || len(cached) != 2 && !(from.late && len(cached) == 1) {
					t.Errorf("with %s, the build ran %q and had %q", from.cache, ran, cached)
				}
				if got := c.ok(t, "run", "--rm", "e2e-warm"); got != want {
					t.Errorf("with %s, the image prints %q, want %q", from.cache, got, want)
				}
			}
			cold()
			r := c.exec("buildx", "build", "--progress=plain", "--cache-from", "type=registry,ref="+ref("none"), dir)
			if ran, _ := ranSteps(r.err); r.code != 0 || len(ran) != 2 || !strings.Contains(r.err, ref("none")+": not found") {
				t.Errorf("a cache that is not there fails the build, or is passed over in silence: %s", r)
			}
		})
	}
}

// TestBuildCacheImage: Debian's docker has the cache in the image, which it names as
// the source of the next build's.
func TestBuildCacheImage(t *testing.T) {
	h := machine(t)
	b := h.builders(t)[1]
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN cat /proc/sys/kernel/random/uuid > /u\nCMD [\"cat\", \"/u\"]\n"})
	ref := suite.registry.image("e2e-cache-image:1")
	b.ok(t, "build", "-t", ref, "--build-arg", "BUILDKIT_INLINE_CACHE=1", dir)
	want := b.ok(t, "run", "--rm", ref)
	b.ok(t, "push", ref)
	b.ok(t, "rmi", ref)
	b.ok(t, "builder", "prune", "-a", "-f")
	b.ok(t, "build", "-t", "e2e-warm", "--cache-from", ref, dir)
	if got := b.ok(t, "run", "--rm", "e2e-warm"); got != want {
		t.Errorf("the image prints %q, and it was built from the cache of one that prints %q", got, want)
	}
}
