package share

import (
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/share/owner"
)

// load reads a node's override. Links and the host's own special files have none.
func (n *node) load() owner.Override {
	if !owner.Kept(n.kind) {
		return owner.None
	}
	var buf [64]byte
	size, err := unix.Getxattr(path(n.fd), owner.Xattr, buf[:])
	if err != nil {
		return owner.None
	}
	o, _ := owner.Parse(string(buf[:size]))
	return o
}

func (n *node) store(o owner.Override) fuse.Status {
	if !owner.Kept(n.kind) {
		return fuse.EPERM
	}
	return errnoOK(unix.Setxattr(path(n.fd), owner.Xattr, []byte(o.String()), 0))
}

func errnoOK(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return errno(err)
}

// fill tells the guest about n.
func (f *FS) fill(n *node, st *unix.Stat_t, who *fuse.Caller, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:       f.inode(st),
		Size:      uint64(st.Size),
		Blocks:    uint64(st.Blocks),
		Atime:     uint64(st.Atim.Sec),
		Mtime:     uint64(st.Mtim.Sec),
		Ctime:     uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec),
		Mtimensec: uint32(st.Mtim.Nsec),
		Ctimensec: uint32(st.Ctim.Nsec),
		Nlink:     uint32(st.Nlink),
		Blksize:   4096,
	}
	seen := n.load().Apply(st.Mode, st.Size, who.Uid, who.Gid)
	out.Mode, out.Uid, out.Gid, out.Rdev = seen.Mode, seen.UID, seen.GID, seen.Rdev
}

// inode keeps inode numbers apart where the folder holds mounts of other devices.
func (f *FS) inode(st *unix.Stat_t) uint64 {
	if st.Dev == f.rootDev {
		return st.Ino
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	small, ok := f.devs[st.Dev]
	if !ok {
		small = uint64(len(f.devs) + 1)
		f.devs[st.Dev] = small
	}
	return st.Ino ^ small<<48
}

// GetAttr tells the attributes of a file.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	return f.getattr(n, &in.Caller, out)
}

func (f *FS) getattr(n *node, who *fuse.Caller, out *fuse.AttrOut) fuse.Status {
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return errno(err)
	}
	f.fill(n, &st, who, &out.Attr)
	out.SetTimeout(Validity)
	return fuse.OK
}

// SetAttr changes size, times, mode and owner.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if status := f.writable(); !status.Ok() {
		return status
	}
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	if status := n.setOwnerAndMode(in); !status.Ok() {
		return status
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if status := f.truncate(n, in); !status.Ok() {
			return status
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_ATIME_NOW|fuse.FATTR_MTIME_NOW) != 0 {
		if status := n.setTimes(in); !status.Ok() {
			return status
		}
	}
	return f.getattr(n, &in.Caller, out)
}

func (n *node) setOwnerAndMode(in *fuse.SetAttrIn) fuse.Status {
	c := owner.Change{KillSetID: in.Valid&fuse.FATTR_KILL_SUIDGID != 0}
	if in.Valid&fuse.FATTR_UID != 0 {
		c.UID = &in.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		c.GID = &in.Gid
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		c.Mode = &in.Mode
	}
	// A link's owner and mode matter to nobody and have no place to be kept.
	if c.Empty() || n.kind == unix.S_IFLNK {
		return fuse.OK
	}
	before := n.load()
	o := before.Change(n.kind, c)
	if c.Mode != nil {
		if err := unix.Fchmodat(unix.AT_FDCWD, path(n.fd), owner.HostMode(in.Mode, n.kind), 0); err != nil {
			return errno(err)
		}
	}
	if o == before {
		return fuse.OK
	}
	if o == owner.None {
		unix.Removexattr(path(n.fd), owner.Xattr)
		return fuse.OK
	}
	return n.store(o)
}

func (f *FS) truncate(n *node, in *fuse.SetAttrIn) fuse.Status {
	if n.kind != unix.S_IFREG {
		return fuse.EINVAL
	}
	if fh, ok := in.GetFh(); ok {
		if h, status := f.regular(fh); status.Ok() {
			defer f.done(h)
			return errnoOK(unix.Ftruncate(h.fd, int64(in.Size)))
		}
	}
	return errnoOK(unix.Truncate(path(n.fd), int64(in.Size)))
}

func (n *node) setTimes(in *fuse.SetAttrIn) fuse.Status {
	if n.kind == unix.S_IFLNK {
		return fuse.OK
	}
	stamp := func(set, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case in.Valid&set != 0:
			return unix.NsecToTimespec(time.Unix(int64(sec), int64(nsec)).UnixNano())
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return errnoOK(unix.UtimesNanoAt(unix.AT_FDCWD, path(n.fd), []unix.Timespec{
		stamp(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		stamp(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}, 0))
}

// Access is left to the guest's kernel, which checks modes itself.
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// StatFs tells how full the host's disk is.
func (f *FS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &st); err != nil {
		return errno(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return fuse.OK
}

// GetXAttr reads an extended attribute.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if !owner.Visible(attr) {
		return 0, fuse.ENOATTR
	}
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	defer f.release(n)
	size, err := unix.Getxattr(path(n.fd), attr, dest)
	return uint32(max(size, 0)), errnoOK(err)
}

// ListXAttr lists the attributes the guest may see.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	defer f.release(n)
	all := make([]byte, 64<<10) // XATTR_LIST_MAX
	size, err := unix.Listxattr(path(n.fd), all)
	if err != nil {
		return 0, errno(err)
	}
	var names []byte
	for name := range strings.SplitSeq(strings.TrimSuffix(string(all[:size]), "\x00"), "\x00") {
		if owner.Visible(name) {
			names = append(append(names, name...), 0)
		}
	}
	if len(dest) > 0 && len(dest) < len(names) {
		return uint32(len(names)), fuse.ERANGE
	}
	copy(dest, names)
	return uint32(len(names)), fuse.OK
}

// SetXAttr sets an extended attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if status := f.writable(); !status.Ok() {
		return status
	}
	if !owner.Visible(attr) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	return errnoOK(unix.Setxattr(path(n.fd), attr, data, int(in.Flags)))
}

// RemoveXAttr removes an extended attribute.
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	if status := f.writable(); !status.Ok() {
		return status
	}
	if !owner.Visible(attr) {
		return fuse.ENOATTR
	}
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	return errnoOK(unix.Removexattr(path(n.fd), attr))
}
