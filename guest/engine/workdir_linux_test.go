package engine

import (
	"os"
	"path/filepath"
	"testing"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine/record"
)

// TestMakeWorkingDir: the links of an image lead where they lead in the container.
func TestMakeWorkingDir(t *testing.T) {
	e := &Engine{opts: Options{RunDir: t.TempDir()}}
	for dir, want := range map[string]string{
		"/a/b": "a/b", "/var/run/app": "run/app", "/up/app": "app", "/abs/app": "nowhere/app", "/run": "run", "/": ".",
	} {
		c := &Container{e: e, id: filepath.Base(filepath.Dir(dir)) + filepath.Base(dir), rec: &record.Record{Config: &apicontainer.Config{WorkingDir: dir}}}
		root := c.rootfs()
		for _, d := range []string{"var", "run"} {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, target := range map[string]string{"var/run": "/run", "up": "../../../..", "abs": "/nowhere"} {
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.makeWorkingDir(); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if fi, err := os.Stat(filepath.Join(root, want)); err != nil || !fi.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
