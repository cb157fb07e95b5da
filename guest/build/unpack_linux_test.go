package build

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
)

func TestTopDir(t *testing.T) {
	overlay := mount.Mount{Type: "overlay", Options: []string{"index=off", "lowerdir=/a:/b", "upperdir=/u", "workdir=/w"}}
	for _, c := range []struct {
		mounts []mount.Mount
		option string
		want   string
	}{
		{[]mount.Mount{overlay}, "lowerdir=", "/a"},
		{[]mount.Mount{overlay}, "upperdir=", "/u"},
		{[]mount.Mount{{Type: "bind", Source: "/s", Options: []string{"ro"}}}, "lowerdir=", "/s"},
		{[]mount.Mount{{Type: "erofs", Source: "/s"}}, "lowerdir=", ""},
		{[]mount.Mount{overlay, overlay}, "lowerdir=", ""},
		{nil, "lowerdir=", ""},
	} {
		if got := topDir(c.mounts, c.option); got != c.want {
			t.Errorf("%v %s: %q, want %q", c.mounts, c.option, got, c.want)
		}
	}
}

// TestLinkTree: the copy is like the original, and its files are the same.
func TestLinkTree(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	old := time.Unix(1e9, 0)
	for _, step := range []error{
		os.MkdirAll(from+"/d/sub", 0o755), os.WriteFile(from+"/d/f", []byte("x"), 0o640), os.Symlink("/etc/passwd", from+"/d/l"),
		os.Chmod(from+"/d/sub", 0o2750|os.ModeSetgid), os.Chtimes(from+"/d/sub", old, old), os.Chtimes(from+"/d", old, old),
		linkTree(from, to),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	for _, name := range []string{"d/f", "d/l"} {
		a, err := os.Lstat(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.Lstat(filepath.Join(to, name)); err != nil || !os.SameFile(a, b) {
			t.Errorf("%s is not the same file: %v", name, err)
		}
	}
	for _, name := range []string{"d", "d/sub"} {
		a, _ := os.Lstat(filepath.Join(from, name))
		b, err := os.Lstat(filepath.Join(to, name))
		if err != nil || a.Mode() != b.Mode() || !b.ModTime().Equal(old) {
			t.Errorf("%s: %v, %v of %v, want %v of %v", name, err, b.Mode(), b.ModTime(), a.Mode(), old)
		}
	}
	if err := linkTree(from, to); err == nil {
		t.Error("a tree that is not empty was taken")
	}
}
