package build

import (
	"os"
	"testing"

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

// TestStands: a directory is known by whatever name it has.
func TestStands(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.Mkdir(dir+"/a", 0o700), os.Mkdir(dir+"/b", 0o700), os.Symlink("a", dir+"/link")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	on := func(lower string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + dir + "/b", "lowerdir=" + lower}}}
	}
	for _, c := range []struct {
		mounts []mount.Mount
		want   bool
	}{
		{on(dir + "/b:" + dir + "/a"), true},
		{on(dir + "/link"), true},
		{on(dir + "/b"), false},
		{on(dir + "/none"), false},
		{[]mount.Mount{{Type: "bind", Source: dir + "/a"}}, false},
	} {
		if got := stands(c.mounts, dir+"/a"); got != c.want {
			t.Errorf("%v: %v, want %v", c.mounts, got, c.want)
		}
	}
}
