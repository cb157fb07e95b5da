// Package trees lets several snapshots of one snapshotter have the same files, which
// are there once: a step that a build has in its cache, and the layer of the image
// made of it.
//
// The snapshotter, containerd's for overlay, keeps each snapshot in a directory of
// its own, and removes that with the snapshot. A directory that is shared moves away
// to the trees; in its place, and in that of every other snapshot with these files,
// is a symbolic link to it. A mount goes through the link, and removal takes the link
// only. A tree to which no link leads is removed by Sweep.
//
// Each step is in the file system's journal as a whole: a process that dies or a
// machine that loses its power leaves at worst a tree, or a link among the trees, for
// the next Sweep. Nothing of a tree is ever changed.
package trees

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Trees are the shared directories of a snapshotter. Its methods are safe for
// concurrent use.
type Trees struct {
	snapshots string // the directory of the snapshots' directories
	dir       string // of the trees; on the same file system

	mu sync.Mutex // held while links or trees come or go
}

// New returns the trees in dir of the snapshots in the directory snapshots. It
// touches nothing.
func New(snapshots, dir string) *Trees { return &Trees{snapshots: snapshots, dir: dir} }

// Share gives the snapshot in the directory to the files of that in the directory
// from. The first is new and nobody has mounted it; what is in it goes. The other is
// committed, and may be mounted. Both are names in the directory of snapshots. The
// caller flushes the file system before it relies on the new one.
func (t *Trees) Share(from, to string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tree, err := t.tree(from)
	if err != nil {
		return fmt.Errorf("share the files of snapshot %s: %w", from, err)
	}
	link := filepath.Join(t.snapshots, to)
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	return t.link(tree, link)
}

// tree returns the name of the tree that a snapshot's directory is a link to, which
// it makes it first if it is none.
func (t *Trees) tree(snapshot string) (string, error) {
	place := filepath.Join(t.snapshots, snapshot)
	target, err := os.Readlink(place)
	if err == nil {
		return filepath.Base(target), nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return "", err
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return "", err
	}
	name := rand.Text()
	tree := filepath.Join(t.dir, name)
	if err := t.link(name, tree); err != nil {
		return "", err
	}
	// Nobody finds the snapshot without a directory.
	if err := unix.Renameat2(unix.AT_FDCWD, place, unix.AT_FDCWD, tree, unix.RENAME_EXCHANGE); err != nil {
		err = &os.LinkError{Op: "exchange", Old: place, New: tree, Err: err}
		return "", errors.Join(err, os.Remove(tree))
	}
	return name, nil
}

// link makes a link to a tree that is right in the directory of snapshots.
func (t *Trees) link(tree, at string) error {
	to, err := filepath.Rel(t.snapshots, filepath.Join(t.dir, tree))
	if err != nil {
		return err
	}
	return os.Symlink(to, at)
}

// Sweep removes the trees to which no snapshot leads.
func (t *Trees) Sweep() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := os.ReadDir(t.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	used, err := t.used()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range all {
		if !used[d.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(t.dir, d.Name())))
		}
	}
	return errors.Join(errs...)
}

// used says to which trees links lead.
func (t *Trees) used() (map[string]bool, error) {
	entries, err := os.ReadDir(t.snapshots)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, d := range entries {
		if d.Type() != fs.ModeSymlink {
			continue
		}
		target, err := os.Readlink(filepath.Join(t.snapshots, d.Name()))
		switch {
		case err == nil:
			used[filepath.Base(target)] = true
		case !errors.Is(err, fs.ErrNotExist): // it went meanwhile
			return nil, err
		}
	}
	return used, nil
}
