package archive

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is a directory tree that paths cannot leave. It does not own its file.
type Tree struct{ root *os.File }

// In returns the tree under an open directory.
func In(root *os.File) Tree { return Tree{root} }

// open opens a path of the tree. The last component is followed only without
// O_NOFOLLOW.
func (t Tree) open(name string, flags int) (*os.File, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(int(t.root.Fd()), name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if err == unix.EINTR || err == unix.EAGAIN { // a rename raced with the look-up
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: "/" + strings.TrimPrefix(name, "."), Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// parent opens the directory that holds a path, and returns the last component,
// which is "." for the root.
func (t Tree) parent(name string) (*os.File, string, error) {
	name = path.Clean("/" + name)
	dir, err := t.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	base := path.Base(name)
	if name == "/" {
		base = "."
	}
	return dir, base, err
}

// Stat is what is known of one file.
type Stat struct {
	Name   string
	Size   int64
	Mode   fs.FileMode
	Mtime  time.Time
	Target string // of a symbolic link, from the tree's root
}

// Stat describes a path; a symbolic link at its end is not followed, unless the
// path ends in a slash or a dot: then it is that of a directory, or an error.
func (t Tree) Stat(name string) (Stat, error) {
	f, err := t.lookup(name)
	if err != nil {
		return Stat{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Stat{}, err
	}
	s := Stat{Name: path.Base(path.Clean("/" + name)), Size: info.Size(), Mode: info.Mode(), Mtime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := readlink(int(f.Fd()), "")
		if err != nil {
			return Stat{}, err
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(path.Clean("/"+name)), target)
		}
		s.Target = path.Clean(target)
	}
	return s, nil
}

// lookup opens a path for looking only.
func (t Tree) lookup(name string) (*os.File, error) {
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") || path.Clean("/"+name) == "/" {
		return t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	}
	return t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", fmt.Errorf("read link %s: %w", name, err)
	}
	return string(buf[:n]), nil
}
