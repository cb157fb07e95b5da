package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is one file of a package. Directories come by themselves.
type entry struct {
	name string // with slashes, relative
	file string // where its content is; empty for text
	text []byte
	link string // target, of a symbolic link
	exec bool
}

// tree is a package's files, in order.
type tree []entry

func (t *tree) add(e entry) { *t = append(*t, e) }

// addDir adds a directory's plain files under a name, but for hidden ones.
func (t *tree) addDir(name, dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Type().IsRegular() && !strings.HasPrefix(f.Name(), ".") {
			t.add(entry{name: path.Join(name, f.Name()), file: filepath.Join(dir, f.Name())})
		}
	}
	return nil
}

// sorted returns the entries by name, with the directories that lead to them,
// whose names end with a slash.
func (t tree) sorted() []entry {
	all := map[string]entry{}
	for _, e := range t {
		all[e.name] = e
		for dir := path.Dir(e.name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			all[dir+"/"] = entry{name: dir + "/"}
		}
	}
	list := make([]entry, 0, len(all))
	for _, e := range all {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return list
}

// content opens the entry's content and says how long it is.
func (e entry) content() (io.ReadCloser, int64, error) {
	if e.file == "" {
		return io.NopCloser(strings.NewReader(string(e.text))), int64(len(e.text)), nil
	}
	f, err := os.Open(e.file)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (e entry) mode() int64 {
	switch {
	case e.exec || strings.HasSuffix(e.name, "/"):
		return 0o755
	case e.link != "":
		return 0o777
	}
	return 0o644
}

// tarball writes the tree as a compressed tar archive in which nothing depends on
// who made it, or when.
func (t tree) tarball(w io.Writer, prefix string, when time.Time) error {
	zw, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(zw)
	for _, e := range t.sorted() {
		if err := addTar(tw, e, prefix, when); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return zw.Close()
}

func addTar(tw *tar.Writer, e entry, prefix string, when time.Time) error {
	h := &tar.Header{Name: prefix + e.name, Mode: e.mode(), ModTime: when, Uname: "root", Gname: "root", Format: tar.FormatGNU}
	switch {
	case strings.HasSuffix(e.name, "/"):
		h.Typeflag = tar.TypeDir
		return tw.WriteHeader(h)
	case e.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		return tw.WriteHeader(h)
	}
	r, size, err := e.content()
	if err != nil {
		return err
	}
	defer r.Close()
	h.Typeflag, h.Size = tar.TypeReg, size
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, r)
	return err
}

// zip writes the tree as a zip archive, likewise. Links are left out.
func (t tree) zip(w io.Writer, when time.Time) error {
	zw := zip.NewWriter(w)
	for _, e := range t.sorted() {
		if strings.HasSuffix(e.name, "/") || e.link != "" {
			continue
		}
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: when}
		h.SetMode(os.FileMode(e.mode()))
		fw, err := zw.CreateHeader(h)
		if err != nil {
			return err
		}
		r, _, err := e.content()
		if err != nil {
			return err
		}
		_, err = io.Copy(fw, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return zw.Close()
}

// write makes a file by a function that writes it.
func write(file string, f func(io.Writer) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := f(out); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func sha256Of(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sums writes the checksums of a directory's files as sha256sum does.
func sums(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, f := range files {
		if !f.Type().IsRegular() || f.Name() == "SHA256SUMS" {
			continue
		}
		sum, err := sha256Of(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s  %s\n", sum, f.Name())
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(text.String()), 0o644)
}
