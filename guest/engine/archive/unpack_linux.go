package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/image/inflate"
)

// UnpackOptions say how Unpack treats what is there.
type UnpackOptions struct {
	// KeepKind refuses to put a directory in the place of a file, or the other way
	// round.
	KeepKind bool
	// Owner, if set, owns everything; otherwise each entry says who.
	Owner *[2]int
}

// Unpack extracts a tar stream, which may be compressed as inflate.New takes it,
// into a directory of the tree. Errors in the stream are
// errdefs.ErrInvalidArgument.
func (t Tree) Unpack(ctx context.Context, dir string, r io.Reader, o UnpackOptions) error {
	d, err := t.open(dir, unix.O_PATH)
	if err != nil {
		return err
	}
	defer d.Close()
	if info, err := d.Stat(); err != nil || !info.IsDir() {
		return errdefs.ErrInvalidArgument.WithMessage("extraction point is not a directory")
	}
	plain, err := inflate.New(ctx, &cancelled{ctx, r})
	if err != nil {
		return invalid("read archive: %v", err)
	}
	defer plain.Close()
	in := tar.NewReader(plain)
	u := &unpacker{t: t, dir: path.Clean("/" + dir), o: o}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return invalid("read archive: %v", err)
		}
		if err := u.entry(h, in); err != nil {
			return fmt.Errorf("extract %q: %w", h.Name, err)
		}
	}
	return u.times()
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

type unpacker struct {
	t    Tree
	dir  string
	o    UnpackOptions
	dirs []*tar.Header // whose times are set last
}

// place returns where an entry goes: a path of the tree, always below dir.
func (u *unpacker) place(name string) string { return path.Join(u.dir, path.Clean("/"+name)) }

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return invalid("a name holds a zero byte")
	}
	where := u.place(h.Name)
	if where == "/" {
		return nil
	}
	parent, base, err := u.t.parent(where)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.makeParents(path.Dir(where)); err != nil {
			return err
		}
		parent, base, err = u.t.parent(where)
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	at := int(parent.Fd())
	keep, err := u.clear(at, base, h)
	if err != nil {
		return err
	}
	if err := u.make(at, base, h, content, keep); err != nil {
		return err
	}
	return u.attributes(at, base, h)
}

func (u *unpacker) makeParents(dir string) error {
	if dir == "/" {
		return nil
	}
	parent, base, err := u.t.parent(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.makeParents(path.Dir(dir)); err != nil {
			return err
		}
		parent, base, err = u.t.parent(dir)
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), base, 0o755); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// clear makes room for an entry. It reports whether a directory that is there is
// kept.
func (u *unpacker) clear(at int, base string, h *tar.Header) (keep bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	isDir, wantDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, h.Typeflag == tar.TypeDir
	switch {
	case isDir && wantDir:
		return true, nil
	case u.o.KeepKind && isDir:
		return false, invalid("cannot overwrite directory %q with non-directory", h.Name)
	case u.o.KeepKind && wantDir:
		return false, invalid("cannot overwrite non-directory %q with directory", h.Name)
	case isDir:
		return false, removeAll(at, base)
	}
	if err := unix.Unlinkat(at, base, 0); err != nil && err != unix.ENOENT { // a folder of the host shows what is gone for a while
		return false, err
	}
	return false, nil
}

// removeAll removes a directory of an open one, following no link.
func removeAll(at int, base string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}

func (u *unpacker) make(at int, base string, h *tar.Header, content io.Reader, keep bool) error {
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		u.dirs = append(u.dirs, h)
		if keep {
			return nil
		}
		return unix.Mkdirat(at, base, mode)
	case tar.TypeReg:
		fd, err := unix.Openat(at, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, at, base)
	case tar.TypeLink:
		from, name, err := u.t.parent(u.place(h.Linkname))
		if err != nil {
			return err
		}
		defer from.Close()
		return unix.Linkat(int(from.Fd()), name, at, base, 0)
	case tar.TypeFifo:
		return unix.Mkfifoat(at, base, mode)
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		return unix.Mknodat(at, base, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeXGlobalHeader:
		return nil
	}
	return invalid("an entry of unknown type %q", h.Typeflag)
}

func (u *unpacker) attributes(at int, base string, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeXGlobalHeader {
		return nil // a link's attributes are those of what it is a name of
	}
	uid, gid := h.Uid, h.Gid
	if u.o.Owner != nil {
		uid, gid = u.o.Owner[0], u.o.Owner[1]
	}
	// Everything by descriptor: a process of the container may put a link in the
	// file's place meanwhile.
	fd, err := unix.Openat(at, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		self := fmt.Sprintf("/proc/self/fd/%d", fd)
		// After chown, which takes setuid away.
		if err := unix.Chmod(self, uint32(h.Mode&0o7777)); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
		if err := setXattrs(self, h); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(at, base, h)
}

func setXattrs(self string, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		if err := unix.Setxattr(self, name, []byte(value), 0); err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func setTime(at int, base string, h *tar.Header) error {
	if h.ModTime.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(at, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// times sets the directories' times, which making their files has changed.
func (u *unpacker) times() error {
	for _, h := range u.dirs {
		where := u.place(h.Name)
		if where == u.dir {
			continue
		}
		parent, base, err := u.t.parent(where)
		if err != nil {
			continue // a later entry put something else there
		}
		_ = setTime(int(parent.Fd()), base, h)
		parent.Close()
	}
	return nil
}
