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
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxXattr bounds one extended attribute, in bytes: what the kernel allows.
const maxXattr = 64 << 10

// Pack writes a file, or a directory with all below it, as a tar stream. The
// entries' names begin with as; an empty as leaves the directory itself out.
// Sockets, and files that go away meanwhile, are left out.
func (t Tree) Pack(ctx context.Context, name, as string, w io.Writer) error {
	p := &packer{ctx: ctx, w: tar.NewWriter(w), seen: map[[2]uint64]string{}}
	f, err := t.lookup(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.pack(f, as); err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	ctx  context.Context
	w    *tar.Writer
	seen map[[2]uint64]string // device and inode of files with several names → the first
}

// pack writes what the O_PATH descriptor f stands for.
func (p *packer) pack(f *os.File, name string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	h, err := header(f, &st, name)
	if err != nil || h == nil {
		return err
	}
	id := [2]uint64{st.Dev, st.Ino}
	if first, ok := p.seen[id]; ok && h.Typeflag != tar.TypeDir {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		p.seen[id] = name
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return p.file(f, h)
	case tar.TypeDir:
		if name != "" {
			h.Name = strings.TrimSuffix(name, "/") + "/"
			if err := p.w.WriteHeader(h); err != nil {
				return err
			}
		}
		return p.dir(f, name)
	}
	return p.w.WriteHeader(h)
}

func header(f *os.File, st *unix.Stat_t, name string) (*tar.Header, error) {
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Size: st.Size,
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
	case unix.S_IFDIR:
		h.Typeflag, h.Size = tar.TypeDir, 0
	case unix.S_IFLNK:
		target, err := readlink(int(f.Fd()), "")
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
	case unix.S_IFIFO:
		h.Typeflag, h.Size = tar.TypeFifo, 0
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag, h.Size = tar.TypeChar, 0
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil, nil // a socket
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir {
		h.PAXRecords = xattrs(f)
	}
	return h, nil
}

// xattrs reads the attributes that an archive should carry.
func xattrs(f *os.File) map[string]string {
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	list := make([]byte, maxXattr)
	n, err := unix.Listxattr(self, list)
	if err != nil || n == 0 {
		return nil
	}
	out := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, maxXattr)
		if n, err := unix.Getxattr(self, name, value); err == nil {
			out["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return out
}

// file writes a regular file's content: as much as its header says, even when it
// shrinks or grows meanwhile.
func (p *packer) file(f *os.File, h *tar.Header) error {
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", h.Name, err)
	}
	defer r.Close()
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(&cancelled{p.ctx, r}, h.Size))
	if err != nil {
		return fmt.Errorf("archive %s: %w", h.Name, err)
	}
	_, err = io.CopyN(p.w, zeros{}, h.Size-n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func (p *packer) dir(f *os.File, name string) error {
	d, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	slices.Sort(names)
	for _, child := range names {
		fd, err := unix.Openat(int(d.Fd()), child, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return fmt.Errorf("archive %s: %w", path.Join(name, child), err)
		}
		c := os.NewFile(uintptr(fd), child)
		full := child
		if name != "" {
			full = strings.TrimSuffix(name, "/") + "/" + child
		}
		err = p.pack(c, full)
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
