package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree makes a root filesystem of the given number of layers below a writable
// one and mounts it.
func tree(t *testing.T, fill ...func(dir string)) (Rootfs, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: overlay mounts")
	}
	base := t.TempDir()
	r := Rootfs{Key: "test"}
	for i, f := range fill {
		dir := filepath.Join(base, fmt.Sprint("layer,", i)) // a comma separates options elsewhere
		must(t, os.Mkdir(dir, 0o755))
		f(dir)
		r.Lower = append([]string{dir}, r.Lower...)
	}
	box := filepath.Join(base, "box")
	must(t, os.Mkdir(box, 0o755))
	var err error
	if r.Upper, r.Work, err = Make(box, r.Lower); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(base, "root")
	must(t, os.Mkdir(at, 0o755))
	must(t, r.Mount(at))
	t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
	return r, at
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, body string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(body), 0o644))
}

func changes(t *testing.T, r Rootfs) []string {
	t.Helper()
	var got []string
	must(t, r.Walk(t.Context(), func(kind Kind, path string) error {
		got = append(got, kind.String()+" "+path)
		return nil
	}))
	return got
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWalk(t *testing.T) {
	r, at := tree(t, func(dir string) {
		write(t, dir+"/a/one", "1")
		write(t, dir+"/a/two", "2")
		write(t, dir+"/b/deep/file", "3")
		write(t, dir+"/c/x", "4")
		must(t, os.Symlink("/etc", dir+"/link"))
		must(t, os.Symlink("a", dir+"/todir"))
	}, func(dir string) {
		write(t, dir+"/a/three", "5")
		write(t, dir+"/d", "6")
	})
	same(t, changes(t, r))

	must(t, os.Remove(at+"/a/one"))
	write(t, at+"/b/deep/file", "changed")
	// A directory that comes back anew hides what was in it.
	must(t, os.RemoveAll(at+"/c"))
	write(t, at+"/c/y", "new")
	// Links of the image are not followed, whatever comes in their place.
	must(t, os.Remove(at+"/link"))
	write(t, at+"/link/passwd", "not yours")
	must(t, os.Remove(at+"/todir"))
	write(t, at+"/todir/one", "not a/one")
	must(t, os.Remove(at+"/d"))
	must(t, os.Chmod(at+"/a/two", 0o600))
	got := changes(t, r)
	// Whether "/c" and "/b/deep" differ is a matter of their times.
	got = slices.DeleteFunc(got, func(s string) bool { return s == "C /c" || s == "C /b" || s == "C /b/deep" })
	same(t, got, "C /a", "D /a/one", "C /a/two", "C /b/deep/file", "D /c/x", "A /c/y", "D /d", "C /link", "A /link/passwd", "C /todir", "A /todir/one")
}

// TestProvided: what a container is provided with is no change to its image, until
// somebody changes it or what lies beside it.
func TestProvided(t *testing.T) {
	r, at := tree(t, func(dir string) {
		write(t, dir+"/etc/passwd", "1")
		write(t, dir+"/dev/null", "")
	})
	if _, err := os.Stat(at + "/" + Marker); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/console", "/proc/", "/sys/"} {
		must(t, os.MkdirAll(filepath.Dir(at+name), 0o755))
		if !strings.HasSuffix(name, "/") {
			write(t, at+name, "")
		}
	}
	same(t, changes(t, r))
	if h := packed(t, r); len(h) > 0 {
		t.Errorf("packed: %v", h)
	}
	write(t, at+"/etc/hosts", "127.0.0.1 localhost")
	write(t, at+"/etc/mine", "")
	write(t, at+"/sys/x", "")
	same(t, changes(t, r), "C /etc", "C /etc/hosts", "A /etc/mine", "C /sys", "A /sys/x")
	if h := packed(t, r); len(h) != 5 || h["etc/"] == nil || h["sys/"] == nil || h["etc/hosts"] == nil {
		t.Errorf("packed: %v", h)
	}
	must(t, os.Remove(at+"/sys/x"))
	must(t, os.Chmod(at+"/dev", 0o700))
	must(t, os.Remove(at+"/etc/passwd"))
	same(t, changes(t, r), "C /dev", "C /etc", "C /etc/hosts", "A /etc/mine", "D /etc/passwd")
}

func TestWalkEnds(t *testing.T) {
	r, at := tree(t, func(dir string) { write(t, dir+"/a", "1") })
	write(t, at+"/b", "2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Walk(ctx, func(Kind, string) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	stop := errors.New("stop")
	if err := r.Walk(t.Context(), func(Kind, string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
	deep := at + strings.Repeat("/d", maxDepth+2)
	must(t, os.MkdirAll(deep, 0o755))
	if err := r.Walk(t.Context(), func(Kind, string) error { return nil }); err == nil || !strings.Contains(err.Error(), "deep") {
		t.Errorf("too deep: %v", err)
	}
}

func packed(t *testing.T, r Rootfs) map[string]*tar.Header {
	t.Helper()
	var buf bytes.Buffer
	must(t, r.Pack(t.Context(), &buf))
	headers := map[string]*tar.Header{}
	tr := tar.NewReader(&buf)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return headers
		}
		must(t, err)
		body, err := io.ReadAll(tr)
		must(t, err)
		h.Uname = string(body) // where the tests look for it
		if headers[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		headers[h.Name] = h
	}
}

func TestPack(t *testing.T) {
	r, at := tree(t, func(dir string) {
		write(t, dir+"/keep/sub/old", "1")
		must(t, os.Chmod(dir+"/keep", 0o711))
		write(t, dir+"/gone", "2")
	})
	must(t, os.Remove(at+"/gone"))
	write(t, at+"/file", "content")
	must(t, os.Chmod(at+"/file", 0o4755))
	must(t, os.Chown(at+"/file", 12, 34))
	must(t, os.Chmod(at+"/file", 0o755|os.ModeSetuid))
	must(t, unix.Setxattr(at+"/file", "user.note", []byte("v\x00w"), 0))
	must(t, os.Link(at+"/file", at+"/other"))
	must(t, os.Symlink("/nowhere", at+"/sym"))
	must(t, unix.Mkfifo(at+"/fifo", 0o600))
	must(t, unix.Mknod(at+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at+"/socket", unix.S_IFSOCK|0o600, 0))
	long := strings.Repeat("n", 200)
	write(t, at+"/"+long, "long")
	// A change deep down whose parents are as they were.
	before := time.Unix(500, 0)
	write(t, at+"/keep/sub/new", "n")
	for _, dir := range []string{"keep/sub", "keep"} {
		must(t, os.Chtimes(at+"/"+dir, before, before))
		must(t, os.Chtimes(r.Lower[0]+"/"+dir, before, before))
	}
	h := packed(t, r)
	if f := h["file"]; f == nil || f.Uname != "content" || f.Mode != 0o4755 || f.Uid != 12 || f.Gid != 34 || f.PAXRecords["SCHILY.xattr.user.note"] != "v\x00w" {
		t.Errorf("file = %+v", f)
	}
	for name, want := range map[string]tar.Header{
		".wh.gone":     {Typeflag: tar.TypeReg},
		"other":        {Typeflag: tar.TypeLink, Linkname: "file"},
		"sym":          {Typeflag: tar.TypeSymlink, Linkname: "/nowhere"},
		"fifo":         {Typeflag: tar.TypeFifo},
		"null":         {Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		long:           {Typeflag: tar.TypeReg},
		"keep/":        {Typeflag: tar.TypeDir},
		"keep/sub/":    {Typeflag: tar.TypeDir},
		"keep/sub/new": {Typeflag: tar.TypeReg},
	} {
		got := h[name]
		if got == nil || got.Typeflag != want.Typeflag || got.Linkname != want.Linkname || got.Devmajor != want.Devmajor || got.Devminor != want.Devminor {
			t.Errorf("%s = %+v", name, got)
		}
	}
	if k := h["keep/"]; k != nil && k.Mode != 0o711 {
		t.Errorf("keep has mode %o", k.Mode)
	}
	if h["socket"] != nil || h["gone"] != nil || h["keep/sub/old"] != nil {
		t.Errorf("packed too much: %v", h)
	}
}

// TestPackWhileTheTreeChanges swaps a directory for a link to outside while the
// tree is packed: nothing from outside may get into the layer.
func TestPackWhileTheTreeChanges(t *testing.T) {
	r, at := tree(t, func(dir string) { write(t, dir+"/x", "1") })
	outside := t.TempDir()
	write(t, outside+"/f", "SECRET")
	end := make(chan struct{})
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		for {
			select {
			case <-end:
				return
			default:
			}
			os.RemoveAll(at + "/d")
			os.Symlink(outside, at+"/d")
			os.Remove(at + "/d")
			os.Mkdir(at+"/d", 0o755)
			os.WriteFile(at+"/d/f", []byte("fine"), 0o644)
		}
	}()
	for range 200 {
		var buf bytes.Buffer
		if err := r.Pack(t.Context(), &buf); err != nil {
			t.Log(err)
		}
		if bytes.Contains(buf.Bytes(), []byte("SECRET")) {
			t.Error("a file from outside was packed")
			break
		}
	}
	close(end)
	<-swapped
}

func TestUsage(t *testing.T) {
	r, at := tree(t, func(dir string) { write(t, dir+"/big", strings.Repeat("x", 1<<20)) })
	write(t, at+"/a", strings.Repeat("x", 64<<10))
	must(t, os.Link(at+"/a", at+"/b"))
	n, err := r.Usage(t.Context())
	must(t, err)
	if n < 64<<10 || n > 100<<10 {
		t.Errorf("usage = %d", n)
	}
}

func TestMountErrors(t *testing.T) {
	r, _ := tree(t, func(dir string) { write(t, dir+"/a", "1") })
	if err := r.Mount("/does/not/exist"); err == nil {
		t.Error("mount on nothing: no error")
	}
	r.Lower = []string{"/does/not/exist"}
	if err := r.Mount(t.TempDir()); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("mount of a missing layer: %v", err)
	}
}

// TestManyLayers stacks more layers than fit into mount(2)'s one page of options.
func TestManyLayers(t *testing.T) {
	var fill []func(string)
	for i := range 120 {
		fill = append(fill, func(dir string) { write(t, fmt.Sprintf("%s/f%d", dir, i), "x") })
	}
	_, at := tree(t, fill...)
	names, err := os.ReadDir(at)
	must(t, err)
	if len(names) != 121 { // with Marker
		t.Errorf("%d files", len(names))
	}
}
