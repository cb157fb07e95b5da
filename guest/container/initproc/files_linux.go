package initproc

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// home is the user's directory from the container's /etc/passwd, or "/".
func (p *process) home() string {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: inRoot,
	}
	fd, err := unix.Openat2(p.root, "/etc/passwd", how)
	if err != nil {
		return "/"
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "/"
	}
	const limit = 1 << 20
	buf := make([]byte, min(st.Size, limit))
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "/"
	}
	return homeIn(string(buf[:n]), p.o.Process.UID)
}

func homeIn(passwd string, uid uint32) string {
	want := strconv.Itoa(int(uid))
	for _, line := range split2(passwd, '\n') {
		if f := split2(line, ':'); len(f) >= 6 && f[2] == want && f[5] != "" {
			return f[5]
		}
	}
	return "/"
}

// copyUp fills a new tmpfs with what the image has at its mount point.
func copyUp(from, to int) error {
	src, err := unix.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dst, err := unix.Openat(to, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(src)
		return err
	}
	return copyDir(src, dst, 0)
}

// copyDir copies src's entries to dst and closes both.
func copyDir(src, dst, depth int) error {
	defer unix.Close(src)
	defer unix.Close(dst)
	if depth > 100 {
		return unix.ELOOP
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(src, dst, name, depth); err != nil {
			return failed(name, err)
		}
	}
	return nil
}

func copyEntry(src, dst int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		from, err := unix.Openat(src, name, flags, 0)
		if err != nil {
			return err
		}
		to, err := unix.Openat(dst, name, flags, 0)
		if err != nil {
			unix.Close(from)
			return err
		}
		return copyDir(from, to, depth+1)
	case unix.S_IFLNK:
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(src, name, buf[:])
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
			return err
		}
		return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFREG:
		return copyFile(src, dst, name, &st)
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
}

func copyFile(src, dst int, name string, st *unix.Stat_t) error {
	from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	for {
		n, err := unix.Sendfile(to, from, nil, 1<<20)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(to, st.Mode&0o7777)
}

// readNames lists a directory without "." and "..".
func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		for b := buf[:n]; len(b) > 0; {
			d := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			name := unix.ByteSliceToString(b[unsafe.Offsetof(d.Name):d.Reclen])
			if name != "." && name != ".." {
				names = append(names, name)
			}
			b = b[d.Reclen:]
		}
	}
}
