package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind says how a path differs from the image. The values are the Docker API's.
type Kind uint8

// The kinds of change.
const (
	Modified Kind = 0
	Added    Kind = 1
	Removed  Kind = 2
)

// String returns docker's letter for the kind.
func (k Kind) String() string {
	switch k {
	case Modified:
		return "C"
	case Added:
		return "A"
	case Removed:
		return "D"
	}
	return "?"
}

// maxDepth is how deep a tree is walked: two descriptors are open per level.
const maxDepth = 400

// Walk calls fn for each path in which the root filesystem differs from its
// image: parents before children, sorted. Paths are absolute. What a container's
// start puts in it is no difference, as long as it is as it was. The root may be
// mounted meanwhile, and its container running: what changes during the walk is
// seen or not.
func (r Rootfs) Walk(ctx context.Context, fn func(kind Kind, path string) error) error {
	held := "" // a directory that has to be told of if something in it is
	return r.walk(ctx, func(c change) error {
		switch c.kind {
		case unchanged:
			return nil
		case touched:
			held = c.path
			return nil
		}
		if dir := held; dir != "" {
			held = ""
			if strings.HasPrefix(c.path, dir+"/") {
				if err := fn(Modified, dir); err != nil {
					return err
				}
			}
		}
		return fn(c.kind, c.path)
	})
}

func (r Rootfs) walk(ctx context.Context, fn func(change) error) error {
	lower, err := r.openLower()
	if err != nil {
		return err
	}
	defer lower.Close()
	upper, err := os.Open(r.Upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	w := walker{ctx: ctx, fn: fn}
	return w.dir("/", upper, lower, 0)
}

const (
	// unchanged is the kind of a directory that is there for its children only.
	unchanged Kind = 255
	// touched is the kind of a directory that differs in its time, and maybe only
	// because of what was put in it.
	touched Kind = 254
)

// Marker is an empty file that tells programs that they are in a container.
const Marker = ".dockerenv"

// provided says whether a path of the upper layer is there for a container's
// mounts, or to tell that it is a container: an empty file, or a directory on
// which nothing is stored. The latter, and the directories of the former, are
// touched. A file that somebody wrote to is modified, also if the image has none.
func provided(full string, st unix.Stat_t) (kind Kind, ok bool) {
	regular, dir := st.Mode&unix.S_IFMT == unix.S_IFREG, st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch full {
	case "/" + Marker, "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/console":
		if st.Size > 0 {
			return Modified, regular
		}
		return unchanged, regular
	case "/etc", "/dev", "/proc", "/sys":
		return touched, dir
	}
	return 0, false
}

// change is one path the walk comes by. dir, name and stat are of the upper
// layer; they say nothing for what was removed.
type change struct {
	kind Kind
	path string
	dir  *os.File
	name string
	stat unix.Stat_t
}

// openLower opens the root of the image alone.
func (r Rootfs) openLower() (*os.File, error) {
	if len(r.Lower) == 1 {
		return os.Open(r.Lower[0])
	}
	fd, err := overlay(append(lowerOptions(r.Lower),
		option{"redirect_dir", "nofollow"}, option{"metacopy", "off"}), unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("cannot read the image of %s: %w", r.Key, err)
	}
	mount := os.NewFile(uintptr(fd), "/")
	defer mount.Close()
	root, err := openDir(mount, ".") // a mount's own descriptor cannot be read
	if err != nil {
		return nil, err
	}
	return root, nil
}

type walker struct {
	ctx context.Context //nolint:containedctx // lives as long as one Walk
	fn  func(change) error
}

// dir compares one directory of the upper layer with the same one below it,
// which is nil when there is none or it is hidden.
func (w walker) dir(at string, upper, lower *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep", at, maxDepth)
	}
	names, err := upper.Readdirnames(-1)
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return context.Cause(w.ctx)
		}
		if err := w.entry(at, name, upper, lower, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w walker) entry(at, name string, upper, lower *os.File, depth int) error {
	up, err := lstat(upper, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone since the directory was read
	}
	if err != nil {
		return err
	}
	low, err := lstat(lower, name)
	below := err == nil && !isWhiteout(low)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	full := path.Join(at, name)
	kind := Modified
	switch {
	case isWhiteout(up):
		if !below {
			return nil
		}
		return w.fn(change{kind: Removed, path: full})
	case !below:
		kind = Added
	case sameDir(up, low):
		kind = unchanged
	}
	if k, ok := provided(full, up); ok && kind != unchanged {
		switch {
		case k == unchanged:
			return nil
		case kind == Added, sameOwner(up, low):
			kind = k
		}
	}
	err = w.fn(change{kind: kind, path: full, dir: upper, name: name, stat: up})
	if err != nil || up.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return w.enter(full, name, upper, lower, below && low.Mode&unix.S_IFMT == unix.S_IFDIR, depth)
}

// enter walks a directory of the upper layer; merged says that the image has one
// of the same name.
func (w walker) enter(full, name string, upper, lower *os.File, merged bool, depth int) error {
	sub, err := openDir(upper, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced since it was looked at
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	var below *os.File
	if merged {
		if below, err = openDir(lower, name); err != nil {
			return err
		}
		defer below.Close()
	}
	if below != nil && isOpaque(sub) {
		if err := w.hidden(full, sub, below); err != nil {
			return err
		}
	}
	return w.dir(full, sub, below, depth+1)
}

// hidden reports what an opaque directory hides and does not replace.
func (w walker) hidden(full string, upper, lower *os.File) error {
	names, err := lower.Readdirnames(-1)
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		_, err := lstat(upper, name)
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := w.fn(change{kind: Removed, path: path.Join(full, name)}); err != nil {
			return err
		}
	}
	return nil
}

func lstat(dir *os.File, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if dir == nil {
		return st, fs.ErrNotExist
	}
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func openDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func isWhiteout(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// isOpaque tells a directory that hides the image's of the same name.
func isOpaque(dir *os.File) bool {
	value := make([]byte, 8)
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", value)
	return err == nil && n == 1 && value[0] == 'y'
}

// sameDir tells a directory that is in the upper layer only for its children.
func sameDir(a, b unix.Stat_t) bool {
	return a.Mode&unix.S_IFMT == unix.S_IFDIR && sameOwner(a, b) && a.Mtim == b.Mtim
}

// sameOwner tells files of the same kind that belong to the same user and permit
// the same.
func sameOwner(a, b unix.Stat_t) bool { return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid }
