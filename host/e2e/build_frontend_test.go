//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// dockerfileFrontend is BuildKit's own program for a frontend image.
const dockerfileFrontend = "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend"

// TestBuildSyntax: a Dockerfile names the image that reads it; a registry has it,
// or the built-in frontend stands in for the published one and says so.
func TestBuildSyntax(t *testing.T) {
	needFull(t) // compiles the frontend
	h := machine(t)
	image := buildContext(t, map[string]string{
		"Dockerfile": "FROM scratch\nLABEL moby.buildkit.frontend.network.none=\"true\"\nLABEL moby.buildkit.frontend.caps=\"moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts\"\n" +
			"COPY frontend /bin/frontend\nENTRYPOINT [\"/bin/frontend\"]\n",
	})
	build := exec.Command("go", "build", "-o", filepath.Join(image, "frontend"), dockerfileFrontend)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ref := suite.registry.image("e2e-frontend:1")
	c := h.berth()
	c.ok(t, "buildx", "build", "-q", "--push", "-t", ref, image)
	c.ok(t, "rmi", ref)
	c.ok(t, "builder", "prune", "-a", "-f")
	const body = "FROM hello\nARG WORD=default\nRUN <<END\necho $WORD > /word\nEND\nCMD [\"cat\", \"/word\"]\n"
	external := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + ref + "\n" + body})
	missing := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + suite.registry.image("e2e-frontend:none") + "\n" + body})
	published := buildContext(t, map[string]string{"Dockerfile": "# syntax=docker/dockerfile:1\n" + body})
	bad := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + ref + "\nFROM hello\nRUNN x\n"})
	for _, b := range append(h.builders(), func() (more []builder) {
		for _, c := range h.buildxes(t)[1:] {
			c.pre = append(c.pre, "buildx")
			more = append(more, builder{cli: c})
		}
		return more
	}()...) {
		t.Run(b.name, func(t *testing.T) {
			prints := func(dir, want string, args ...string) result {
				t.Helper()
				r := b.exec(append(append([]string{"build", "-t", "e2e-syntax", "--build-arg", "WORD=" + want}, args...), dir)...)
				if r.code != 0 {
					t.Fatal(r)
				}
				if got := h.berth().ok(t, "run", "--rm", "e2e-syntax"); got != want {
					t.Errorf("the image prints %q, want %q", got, want)
				}
				return r
			}
			if r := prints(external, "external"); !b.classic && !strings.Contains(r.err, "docker-image://"+ref) {
				t.Errorf("the build shows nothing of the frontend's image: %s", r)
			}
			b.fails(t, "unknown instruction: RUNN", "build", bad)
			b.fails(t, "e2e-frontend:none: not found", "build", missing)
			if r := prints(published, "published"); !strings.Contains(r.out+r.err, "docker/dockerfile:1 cannot be fetched, the built-in Dockerfile frontend is used in its place") {
				t.Errorf("it does not say that the built-in frontend is used: %s", r)
			}
		})
	}
	c.ok(t, "rmi", "e2e-syntax")
}
