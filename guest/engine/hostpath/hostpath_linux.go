package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrOutside is returned for a path that lies in no shared folder, or that a
// symbolic link leads out of them.
var ErrOutside = errors.New("not in a folder that the host shares with the machine")

// OutsideError is an ErrOutside.
type OutsideError struct {
	Path string // on the host, where the resolution ended
}

// Error also says how to share the folder.
func (e *OutsideError) Error() string {
	return fmt.Sprintf(`the host does not share %s with the machine: add it to "shares" in the file that "berth machine config" names, and run "berth restart"`, e.Path)
}

// Unwrap returns ErrOutside.
func (e *OutsideError) Unwrap() error { return ErrOutside }

const (
	// maxLinks is how many symbolic links a path may take, as in the kernel.
	maxLinks = 40
	// mountTimeout bounds the wait for a folder that the boot is still mounting.
	mountTimeout = 30 * time.Second
	mountPoll    = 10 * time.Millisecond
)

// Folder is one folder of the host, under one of its names there.
type Folder struct {
	Path string // on the host, absolute and clean; of Windows, as FromDrive has it
	Dir  string // in the machine
	// Windows is set where the host is one: names are the same whatever their case,
	// and paths are read by Windows.
	Windows bool
	// Mounted is set where Dir must be the mount of a folder, which may be under
	// way: see Map.Open.
	Mounted bool
}

// Map is a set of folders. It is a value that is safe for concurrent use.
type Map []Folder

// All is the map of a machine that is its own host.
func All() Map { return Map{{Path: "/", Dir: "/"}} }

// Open opens what the host calls name, O_PATH. With create, directories that are
// missing are made. The error wraps ErrOutside, fs.ErrNotExist or a system
// call's. A folder that is still being mounted is waited for.
func (m Map) Open(ctx context.Context, name string, create bool) (*os.File, error) {
	literal := name
	if m.windows() {
		name, _ = Windows(name)
	}
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%q is not an absolute path", literal)
	}
	w := walk{folders: m, create: create, pending: split(name)}
	defer w.leave()
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(w.top()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// windows says whether the host is a Windows.
func (m Map) windows() bool {
	return slices.ContainsFunc(m, func(f Folder) bool { return f.Windows })
}

func split(p string) []string {
	return strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
}

// walk is a resolution on its way. What lies above the folders is not to be
// seen and taken literally.
type walk struct {
	folders Map
	create  bool
	pending []string // names yet to go
	links   int

	at  []string // where it is on the host
	fds []int    // of the directories from the folder's top to there; none outside the folders
}

func (w *walk) top() int { return w.fds[len(w.fds)-1] }

func (w *walk) path() string { return "/" + strings.Join(w.at, "/") }

// leave forgets the folder.
func (w *walk) leave() {
	for _, fd := range w.fds {
		unix.Close(fd)
	}
	w.fds = nil
}

func (w *walk) run(ctx context.Context) error {
	if err := w.enter(ctx); err != nil {
		return err
	}
	for len(w.pending) > 0 {
		name := w.pending[0]
		w.pending = w.pending[1:]
		var err error
		switch name {
		case ".":
		case "..":
			err = w.up(ctx)
		default:
			err = w.down(ctx, name)
		}
		if err != nil {
			return err
		}
	}
	if len(w.fds) == 0 && w.folders.windows() {
		return &OutsideError{ToDrive(w.path())}
	}
	if len(w.fds) == 0 {
		return &OutsideError{w.path()}
	}
	return nil
}

// enter goes into the folder whose top is here, if there is one.
func (w *walk) enter(ctx context.Context) error {
	for _, f := range w.folders {
		if f.Path != w.path() && !(f.Windows && strings.EqualFold(f.Path, w.path())) {
			continue
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
		fd, err := unix.Open(f.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		w.leave()
		w.fds = []int{fd}
		return nil
	}
	return nil
}

func (w *walk) up(ctx context.Context) error {
	w.at = w.at[:max(len(w.at)-1, 0)]
	if len(w.fds) > 1 {
		unix.Close(w.top())
		w.fds = w.fds[:len(w.fds)-1]
		return nil
	}
	// Above this folder's top, but maybe inside another: from the beginning.
	w.leave()
	w.pending = append(append([]string(nil), w.at...), w.pending...)
	w.at = nil
	return w.enter(ctx)
}

// down goes on by one name, or puts what it links to before the names to go.
func (w *walk) down(ctx context.Context, name string) error {
	if len(w.fds) == 0 {
		w.at = append(w.at, name)
		return w.enter(ctx)
	}
	fd, err := w.open(name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path.Join(w.path(), name), Err: err}
	}
	target, isLink, err := readlink(fd)
	if err == nil && !isLink {
		w.at, w.fds = append(w.at, name), append(w.fds, fd)
		return w.enter(ctx)
	}
	unix.Close(fd)
	if w.links++; err == nil && w.links > maxLinks {
		err = unix.ELOOP
	}
	if err != nil {
		return &fs.PathError{Op: "follow", Path: path.Join(w.path(), name), Err: err}
	}
	if w.folders.windows() {
		target = fromLink(target)
	}
	w.pending = append(split(target), w.pending...)
	if !path.IsAbs(target) {
		return nil
	}
	w.leave()
	w.at = nil
	return w.enter(ctx)
}

// open opens one name, and makes it if it may.
func (w *walk) open(name string) (int, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(w.top(), name, flags, 0)
	if err != unix.ENOENT || !w.create {
		return fd, err
	}
	if err := unix.Mkdirat(w.top(), name, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return unix.Openat(w.top(), name, flags, 0)
}

// readlink reads the symbolic link that fd is, if it is one.
func readlink(fd int) (target string, isLink bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), true, err
}

// wait waits until the folder is mounted.
func (f Folder) wait(ctx context.Context) error {
	if !f.Mounted {
		return nil
	}
	for deadline := time.Now().Add(mountTimeout); ; {
		var st unix.Statfs_t
		if err := unix.Statfs(f.Dir, &st); err == nil && (st.Type == unix.FUSE_SUPER_MAGIC || st.Type == unix.V9FS_MAGIC) {
			return nil
		}
		if why, err := os.ReadFile(f.Dir + ".error"); err == nil {
			return fmt.Errorf("the host's folder %s could not be mounted: %s", f.Path, why)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the host's folder %s is not mounted: see \"berth logs\"", f.Path)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mountPoll):
		}
	}
}
