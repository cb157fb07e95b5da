package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestBindDescriptor: a bind's source may be a descriptor of this process, which
// its name has left since, and which the first process could not open.
func TestBindDescriptor(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	for dir, text := range map[string]string{"meant": "meant", "other": "other"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(top, dir, "f"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	source, err := os.Open(filepath.Join(top, "meant"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if err := os.Rename(filepath.Join(top, "meant"), filepath.Join(top, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", filepath.Join(top, "meant")); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t))
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mnt", Type: "bind",
		Source: fmt.Sprintf("/proc/self/fd/%d", source.Fd()), Options: []string{"rbind", "ro"}})
	if out := sh(t, spec, "cat /mnt/f; echo x >/mnt/f || echo refused"); !strings.HasPrefix(out, "meant") || !strings.HasSuffix(out, "refused") {
		t.Errorf("the container saw %q", out)
	}
}
