package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func tree(t *testing.T) (Tree, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return In(f), dir
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o640); err != nil {
		t.Fatal(err)
	}
}

func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Uid, h.Gid, h.ModTime = os.Getuid(), os.Getgid(), time.Unix(1000, 0)
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, "data")
		}
	}
	w.Close()
	return &b
}

func TestRoundTrip(t *testing.T) {
	from, dir := tree(t)
	write(t, dir+"/a/b/file", "hello")
	if err := os.Symlink("b/file", dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/a/b/file", dir+"/a/hard"); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(12345, 0)
	if err := os.Chtimes(dir+"/a/b", old, old); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := from.Pack(context.Background(), "/a", "copy", z); err != nil {
		t.Fatal(err)
	}
	z.Close()
	to, out := tree(t)
	if err := to.Unpack(context.Background(), "/", &b, UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b/file", "link", "hard"} {
		if data, err := os.ReadFile(out + "/copy/" + name); err != nil || string(data) != "hello" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	one, _ := os.Stat(out + "/copy/hard")
	two, _ := os.Stat(out + "/copy/b/file")
	if !os.SameFile(one, two) {
		t.Error("a hard link became a copy")
	}
	if info, _ := os.Stat(out + "/copy/b"); !info.ModTime().Equal(old) {
		t.Errorf("a directory's time is %v", info.ModTime())
	}
}

func TestStat(t *testing.T) {
	tr, dir := tree(t)
	write(t, dir+"/etc/f", "12345")
	os.Symlink("/etc", dir+"/abs")
	os.Symlink("../../../../etc/f", dir+"/etc/up")
	for _, c := range []struct{ path, name, target string }{
		{"/etc/f", "f", ""}, {"/abs/f", "f", ""}, {"/abs", "abs", "/etc"}, {"/etc/up", "up", "/etc/f"}, {"/abs/", "abs", ""}, {"/", "/", ""},
	} {
		s, err := tr.Stat(c.path)
		if err != nil || s.Name != c.name || s.Target != c.target {
			t.Errorf("%s: %+v, %v", c.path, s, err)
		}
	}
	if _, err := tr.Stat("/nothere"); !os.IsNotExist(err) {
		t.Errorf("missing: %v", err)
	}
	for _, path := range []string{"/etc/f/", "/etc/f/.", "/etc/up/"} {
		if s, err := tr.Stat(path); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s, a file: %+v, %v", path, s, err)
		}
	}
}

// TestNothingLeavesTheTree feeds streams that try to.
func TestNothingLeavesTheTree(t *testing.T) {
	for what, headers := range map[string][]tar.Header{
		"dots":          {{Name: "../../../escaped", Typeflag: tar.TypeReg}},
		"absolute":      {{Name: "/escaped", Typeflag: tar.TypeReg}},
		"through link":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "l/escaped", Typeflag: tar.TypeReg}},
		"through dots":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../.."}, {Name: "l/escaped", Typeflag: tar.TypeReg}},
		"over link":     {{Name: "escaped", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, {Name: "escaped", Typeflag: tar.TypeReg}},
		"hard link out": {{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../OUTSIDE"}},
		"dir over link": {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, {Name: "d", Typeflag: tar.TypeDir, Mode: 0o777}},
	} {
		t.Run(what, func(t *testing.T) {
			outside := t.TempDir()
			secret := outside + "/secret"
			write(t, secret, "safe")
			tr, dir := tree(t)
			os.Mkdir(dir+"/in", 0o755)
			for i := range headers {
				headers[i].Linkname = strings.ReplaceAll(headers[i].Linkname, "OUTSIDE", secret)
			}
			_ = tr.Unpack(context.Background(), "/in", stream(t, headers...), UnpackOptions{})
			if data, err := os.ReadFile(secret); err != nil || string(data) != "safe" {
				t.Errorf("a file outside was changed: %q, %v", data, err)
			}
			for _, p := range []string{"/escaped", filepath.Dir(dir) + "/escaped"} {
				if _, err := os.Lstat(p); err == nil {
					t.Errorf("%s was made", p)
					os.Remove(p)
				}
			}
		})
	}
}

func TestKinds(t *testing.T) {
	tr, dir := tree(t)
	write(t, dir+"/d/f", "x")
	write(t, dir+"/f", "x")
	ctx := context.Background()
	for what, h := range map[string]tar.Header{
		"file over directory": {Name: "d", Typeflag: tar.TypeReg}, "directory over file": {Name: "f", Typeflag: tar.TypeDir},
	} {
		if err := tr.Unpack(ctx, "/", stream(t, h), UnpackOptions{KeepKind: true}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := tr.Unpack(ctx, "/", stream(t, tar.Header{Name: "d", Typeflag: tar.TypeReg}), UnpackOptions{}); err != nil {
		t.Error(err)
	}
	if err := tr.Unpack(ctx, "/f", stream(t), UnpackOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("into a file: %v", err)
	}
	if err := tr.Unpack(ctx, "/", strings.NewReader("this is no tar, but long enough to be read as a header "+strings.Repeat("x", 1000)), UnpackOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("garbage: %v", err)
	}
	if err := tr.Unpack(ctx, "/", stream(t, tar.Header{Name: "new/deep/file", Typeflag: tar.TypeReg}), UnpackOptions{}); err != nil {
		t.Errorf("missing parents: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "../l", Typeflag: tar.TypeSymlink, Linkname: "/"})
	w.WriteHeader(&tar.Header{Name: "l/x", Typeflag: tar.TypeReg, Size: 1})
	w.Write([]byte("y"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		base := t.TempDir()
		os.Mkdir(base+"/root", 0o755)
		root, err := os.Open(base + "/root")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = In(root).Unpack(context.Background(), "/", bytes.NewReader(data), UnpackOptions{Owner: &[2]int{os.Getuid(), os.Getgid()}})
		entries, err := os.ReadDir(base)
		if err != nil || len(entries) != 1 {
			t.Errorf("beside the root there is %v, %v", entries, err)
		}
	})
}
