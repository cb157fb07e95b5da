package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestLayer: a layer holds what has come, changed or gone, and nothing else.
func TestLayer(t *testing.T) {
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(in(name)), 0o755))
		must(os.WriteFile(in(name), []byte(text), 0o644))
	}
	for _, name := range []string{"same", "changed", "mode", "gone", "folder/same", "lost/a", "lost/b/c", "dev/null"} {
		write(name, "first")
	}
	before, err := look(root)
	must(err)
	write("changed", "again")
	must(os.Chmod(in("mode"), 0o600))
	must(os.Remove(in("gone")))
	must(os.RemoveAll(in("lost")))
	write("new/file", "new")
	must(os.Link(in("new/file"), in("new/other")))
	must(os.Symlink("file", in("new/link")))

	file, err := writeLayer(t.TempDir(), root, before)
	must(err)
	want := map[string]byte{
		"changed": tar.TypeReg, "mode": tar.TypeReg, ".wh.gone": tar.TypeReg, ".wh.lost": tar.TypeReg,
		"new/": tar.TypeDir, "new/file": tar.TypeReg, "new/other": tar.TypeLink, "new/link": tar.TypeSymlink,
	}
	f, err := os.Open(file)
	must(err)
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(err)
		if kind, ok := want[h.Name]; !ok || kind != h.Typeflag {
			t.Errorf("%s of kind %c: want %c", h.Name, h.Typeflag, kind)
		}
		delete(want, h.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// TestLayout: images are found by name and recipe, share layers, and what nothing
// needs any more goes.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	l := layout{filepath.Join(dir, "oci")}
	layer := func(text string) string {
		name := filepath.Join(dir, text)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	base, err := l.add(recipe{name: "base"}, "key", image{}, layer("below"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.add(recipe{name: "top"}, "old", base, layer("old")); err != nil {
		t.Fatal(err)
	}
	top, err := l.add(recipe{name: "top"}, "new", base, layer("new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.find("top", "old"); err == nil {
		t.Error("an image of an old recipe is still there")
	}
	found, err := l.find("top", "new")
	if err != nil || found.desc.Digest != top.desc.Digest || len(found.manifest.Layers) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	// Two manifests, two configurations, two layers.
	if blobs, _ := filepath.Glob(filepath.Join(l.dir, "blobs", "sha256", "*")); len(blobs) != 6 {
		t.Errorf("blobs: %q", blobs)
	}
}

// TestRecipes: each stands on one that is there, and its key follows what it is
// made of.
func TestRecipes(t *testing.T) {
	keys := map[string]string{}
	for _, r := range recipes {
		if r.from != "" && r.from != "scratch" {
			if _, err := find(r.from); err != nil {
				t.Errorf("%s stands on %q: %v", r.name, r.from, err)
			}
		}
		key := r.key("")
		if other, ok := keys[key]; ok {
			t.Errorf("%s and %s have one key", r.name, other)
		}
		keys[key] = r.name
	}
	r, _ := find("redis")
	was := r.key("")
	r.packages = append(r.packages, "less")
	if r.key("") == was {
		t.Error("another package, and the key is the same")
	}
}
