package initproc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

func TestHome(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nnohome:x:5:5::\n\nuser:x:1000:1000::/home/user:/bin/sh\nlast:x:7:7::/last"
	for uid, want := range map[uint32]string{0: "/root", 1000: "/home/user", 5: "/", 6: "/", 7: "/last", 100: "/"} {
		if got := homeIn(passwd, uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
}

func FuzzHome(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", uint32(0))
	f.Fuzz(func(t *testing.T, passwd string, uid uint32) {
		if home := homeIn(passwd, uid); home == "" || strings.ContainsAny(home, ":\n") {
			t.Errorf("%q", home)
		}
	})
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]string{"/": "/", "/a": "/", "/a/b": "/a", "/a/b/c": "/a/b"} {
		if got := parent(path); got != want {
			t.Errorf("parent of %q: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]string{"/a": "a", "/a/b": "b"} {
		if got := base(path); got != want {
			t.Errorf("base of %q: %q, want %q", path, got, want)
		}
	}
	if got := split("//a/./b/../c/", []string{"d"}); !slices.Equal(got, []string{"a", "b", "..", "c", "d"}) {
		t.Errorf("%q", got)
	}
}

// root opens dir as a container's root.
func root(t testing.TB, dir string) *process {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &process{o: &order.Order{}, root: fd}
}

func TestTarget(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	for link, to := range map[string]string{
		"absolute": outside, "up": "../../../../../.." + outside, "chain": "absolute/x", "dangling": "/not/there/yet",
		"loop": "loop", "self": ".", "dots": "a/../b",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := root(t, dir)
	for _, test := range []struct {
		path string
		dir  bool
		want string // where it is, from dir; empty: an error
	}{
		{"/new/deep/dir", true, "new/deep/dir"},
		{"/new/deep/file", false, "new/deep/file"},
		{"/absolute/x", true, outside[1:] + "/x"},
		{"/up/y", true, outside[1:] + "/y"},
		{"/chain/z", true, outside[1:] + "/x/z"},
		{"/dangling/sub", true, "not/there/yet/sub"},
		{"/dangling", false, "not/there/yet"},
		{"/self/self/s", true, "s"},
		{"/dots/d", true, "b/d"},
		{"/../../../e", true, "e"},
		{"/loop/x", true, ""},
		{"/file/x", true, ""},
	} {
		fd, err := p.target(test.path, test.dir)
		if (err == nil) != (test.want != "") {
			t.Errorf("%s: %v", test.path, err)
		}
		if err != nil {
			continue
		}
		var got, want unix.Stat_t
		if err := unix.Fstat(fd, &got); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		if err := unix.Stat(filepath.Join(dir, test.want), &want); err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			t.Errorf("%s is not %s: %v", test.path, test.want, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("something was made outside: %v %v", left, err)
	}
}

// FuzzTarget lets no path and no pair of links lead out of the root.
func FuzzTarget(f *testing.F) {
	f.Add("/a/b/c", "/b", "../..")
	f.Add("/x/../y", "..", "/../../x")
	f.Add("a", "b/../../c", "")
	f.Fuzz(func(t *testing.T, path, link1, link2 string) {
		if strings.ContainsRune(path+link1+link2, 0) || len(path)+len(link1)+len(link2) > 1000 {
			return
		}
		base := t.TempDir()
		dir := filepath.Join(base, "one", "two", "root")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink(link1, filepath.Join(dir, "a"))
		_ = os.Symlink(link2, filepath.Join(dir, "b"))
		p := root(t, dir)
		if fd, err := p.target("/"+path, true); err == nil {
			unix.Close(fd)
		}
		for _, d := range []string{base, filepath.Join(base, "one"), filepath.Join(base, "one", "two")} {
			if left, err := os.ReadDir(d); err != nil || len(left) != 1 {
				t.Errorf("made outside: %v %v", left, err)
			}
		}
	})
}

func TestCopyUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	from, to := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(from, "d/e"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "d/f"), []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(from, "d/f"), 5, 6); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	open := func(dir string) int { return root(t, dir).root }
	unix.Umask(0)
	defer unix.Umask(0o022)
	if err := copyUp(open(from), open(to)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(to, "d/f"))
	var st unix.Stat_t
	if err != nil || string(b) != "text" || unix.Stat(filepath.Join(to, "d/f"), &st) != nil || st.Uid != 5 || st.Gid != 6 || st.Mode&0o777 != 0o640 {
		t.Errorf("%q %v %+v", b, err, st)
	}
	if target, err := os.Readlink(filepath.Join(to, "link")); target != "/etc/passwd" || err != nil {
		t.Error(target, err)
	}
	if fi, err := os.Stat(filepath.Join(to, "d/e")); err != nil || fi.Mode().Perm() != 0o750 {
		t.Error(fi, err)
	}
}
