//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// foreignArch returns the architecture that the machine emulates, and the name under
// which the kernel knows how.
func foreignArch() (arch, handler string) {
	if runtime.GOARCH == "arm64" {
		return "amd64", "qemu-x86_64"
	}
	return "arm64", "qemu-aarch64"
}

// forgetForeign has the kernel not know any longer.
func (h *home) forgetForeign(t testing.TB, handler string) {
	t.Helper()
	h.berth().ok(t, "ssh", "--", fmt.Sprintf("f=/proc/sys/fs/binfmt_misc/%s; [ ! -e $f ] || echo -1 > $f", handler))
}

// TestForeignPlatform: programs for the other architecture run in containers and in
// builds, and whichever comes first has the machine get ready for them.
func TestForeignPlatform(t *testing.T) {
	h := machine(t)
	arch, handler := foreignArch()
	program := buildProgram(t, `package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	if len(os.Args) > 1 {
		if err := os.WriteFile(os.Args[1], []byte("made on "+runtime.GOARCH), 0o644); err != nil {
			panic(err)
		}
	}
	made, _ := os.ReadFile("/made")
	fmt.Println(os.Args[0], runtime.GOARCH, string(made))
}
`, "GOARCH="+arch)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY program /say\nRUN [\"/say\", \"/made\"]\nENTRYPOINT [\"/say\"]\n"})
	if err := os.Rename(program, filepath.Join(dir, "program")); err != nil {
		t.Fatal(err)
	}
	platform := "linux/" + arch
	t.Cleanup(func() { h.berth().exec("rmi", "-f", "e2e-foreign") })

	c := h.berth()
	if r := c.execIn(onlyFile(t, filepath.Join(dir, "program"), "say"), "import", "--platform", platform, "--change", `ENTRYPOINT ["/say"]`, "-", "e2e-foreign"); r.code != 0 {
		t.Fatal(r)
	}
	for range 2 { // the second finds the handler registered
		if got, want := c.ok(t, "run", "--rm", "--init", "--platform", platform, "e2e-foreign"), "/say "+arch; strings.TrimSpace(got) != want {
			t.Errorf("the imported image prints %q, want %q", got, want)
		}
	}
	if got := c.ok(t, "buildx", "inspect"); !strings.Contains(got, platform) {
		t.Errorf("the builder does not offer %s:\n%s", platform, got)
	}
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			h.forgetForeign(t, handler)
			b.ok(t, "build", "-q", "--no-cache", "--platform", platform, "-t", "e2e-foreign", dir)
			if got, want := b.ok(t, "run", "--rm", "--platform", platform, "e2e-foreign"), "/say "+arch+" made on "+arch; got != want {
				t.Errorf("the image prints %q, want %q", got, want)
			}
			if got := b.ok(t, "inspect", "-f", "{{.Os}}/{{.Architecture}}", "e2e-foreign"); got != platform {
				t.Errorf("the image is for %q, want %q", got, platform)
			}
		})
	}
}
