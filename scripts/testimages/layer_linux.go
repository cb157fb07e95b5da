package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tree is what is under a root: by path relative to it, and in what state.
type tree map[string]mark

// mark tells whether a file has been touched: the kernel moves ctime with every
// change of content or attributes.
type mark struct {
	inode uint64
	ctime syscall.Timespec
}

// look takes down what is under a root, but for what the engine fills in.
func look(root string) (tree, error) {
	t := tree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		t[rel] = mark{st.Ino, st.Ctim}
		if d.IsDir() && (rel == "dev" || rel == "proc" || rel == "sys") {
			return fs.SkipDir
		}
		return nil
	})
	return t, err
}

// writeLayer writes the difference between a root as it was before, nil for
// nothing, and as it is, as a layer: an uncompressed tar in a new file in dir.
func writeLayer(dir, root string, before tree) (file string, err error) {
	after, err := look(root)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name())
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	l := layer{tw: tar.NewWriter(buffered), root: root, linked: map[uint64]string{}}
	for _, rel := range slices.Sorted(maps.Keys(after)) {
		if was, ok := before[rel]; ok && was == after[rel] {
			continue
		}
		if err := l.add(rel); err != nil {
			return "", fmt.Errorf("%s: %w", rel, err)
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[rel]; ok {
			continue
		}
		if _, ok := after[filepath.Dir(rel)]; !ok && filepath.Dir(rel) != "." {
			continue // its folder's whiteout covers it
		}
		if err := l.whiteout(rel); err != nil {
			return "", err
		}
	}
	if err := l.tw.Close(); err != nil {
		return "", err
	}
	return f.Name(), buffered.Flush()
}

type layer struct {
	tw     *tar.Writer
	root   string
	linked map[uint64]string // by inode, the first name of a file with many
}

func (l layer) add(rel string) error {
	path := filepath.Join(l.root, rel)
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = rel, "", "", tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode().IsRegular() && st.Nlink > 1 {
		if first, ok := l.linked[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return l.tw.WriteHeader(h)
		}
		l.linked[st.Ino] = rel
	}
	if err := l.tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(l.tw, f)
	return err
}

func (l layer) whiteout(rel string) error {
	name := filepath.Join(filepath.Dir(rel), ".wh."+filepath.Base(rel))
	return l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "./"), Format: tar.FormatPAX})
}
