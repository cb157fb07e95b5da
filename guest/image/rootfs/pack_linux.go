package rootfs

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
	"time"

	"golang.org/x/sys/unix"
)

const whiteoutPrefix = ".wh."

// Pack writes the differences from the image as an uncompressed OCI layer: a tar
// with whiteouts. The order and the headers depend on the tree alone.
func (r Rootfs) Pack(ctx context.Context, w io.Writer) error {
	p := packer{tar: tar.NewWriter(w), links: map[[2]uint64]string{}}
	if err := r.walk(ctx, p.change); err != nil {
		return fmt.Errorf("cannot pack %s: %w", r.Key, err)
	}
	return p.tar.Close()
}

type packer struct {
	tar     *tar.Writer
	links   map[[2]uint64]string // device and inode → name in the tar
	parents []*tar.Header        // unchanged directories not written so far
}

func (p *packer) change(c change) error {
	if c.kind == Removed {
		if err := p.writeParents(c.path); err != nil {
			return err
		}
		return p.tar.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg,
			Name:     path.Join(path.Dir(c.path), whiteoutPrefix+path.Base(c.path))[1:],
			ModTime:  time.Unix(0, 0),
			Format:   tar.FormatPAX,
		})
	}
	if strings.HasPrefix(c.name, whiteoutPrefix) || c.stat.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil // neither can be said in a layer
	}
	h, file, err := p.header(c)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil // replaced since it was looked at
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	if file != nil {
		defer file.Close()
	}
	if c.kind == unchanged || c.kind == touched {
		p.parents = append(p.parents, h)
		return nil
	}
	if err := p.writeParents(c.path); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return p.content(file, h.Size)
}

// writeParents writes the directories above name that were held back. A layer
// must hold them, or unpacking it makes them anew.
func (p *packer) writeParents(name string) error {
	for _, h := range p.parents {
		if strings.HasPrefix(name[1:], h.Name) {
			if err := p.tar.WriteHeader(h); err != nil {
				return err
			}
		}
	}
	p.parents = p.parents[:0]
	return nil
}

// content writes exactly size bytes; a file that shrank is filled with zeros.
func (p *packer) content(file *os.File, size int64) error {
	n, err := io.Copy(p.tar, io.LimitReader(file, size))
	if err != nil || n == size {
		return err
	}
	_, err = io.CopyN(p.tar, zeros{}, size-n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// header describes one path. A regular file's content comes open with it.
func (p *packer) header(c change) (*tar.Header, *os.File, error) {
	st := c.stat
	h := &tar.Header{
		Name:    c.path[1:],
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		dir, err := openDir(c.dir, c.name)
		if err != nil {
			return nil, nil, err
		}
		defer dir.Close()
		return h, nil, addXattrs(h, dir)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(c.dir.Fd()), c.name, target)
		if err != nil {
			return nil, nil, err
		}
		h.Linkname = string(target[:n])
		return h, nil, nil
	case unix.S_IFREG:
		return p.regular(h, c)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	default:
		return nil, nil, fmt.Errorf("unknown file type %#o", st.Mode&unix.S_IFMT)
	}
	h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return h, nil, nil
}

func (p *packer) regular(h *tar.Header, c change) (*tar.Header, *os.File, error) {
	id := [2]uint64{c.stat.Dev, c.stat.Ino}
	if first, ok := p.links[id]; ok && c.stat.Nlink > 1 {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return h, nil, nil
	}
	fd, err := unix.Openat(int(c.dir.Fd()), c.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	file := os.NewFile(uintptr(fd), c.path)
	var now unix.Stat_t
	err = unix.Fstat(fd, &now)
	switch {
	case err != nil:
	case now.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fs.ErrNotExist
	default:
		h.Typeflag, h.Size = tar.TypeReg, now.Size
		err = addXattrs(h, file)
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	p.links[id] = h.Name
	return h, file, nil
}

// addXattrs takes over the attributes that belong in an image: capabilities and
// the users' own.
func addXattrs(h *tar.Header, file *os.File) error {
	fd := int(file.Fd())
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			continue // gone since
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
	}
	return nil
}

// Usage returns the bytes the writable layer takes on the disk; hard links count
// once.
func (r Rootfs) Usage(ctx context.Context) (int64, error) {
	dir, err := os.Open(r.Upper)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	seen := map[uint64]bool{}
	return usage(ctx, dir, seen, 0)
}

func usage(ctx context.Context, dir *os.File, seen map[uint64]bool, depth int) (int64, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("more than %d directories deep", maxDepth)
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, name := range names {
		st, err := lstat(dir, name)
		if err != nil {
			continue // gone since
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if seen[st.Ino] {
				continue
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * 512
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := openDir(dir, name)
		if err != nil {
			continue
		}
		n, err := usage(ctx, sub, seen, depth+1)
		sub.Close()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
