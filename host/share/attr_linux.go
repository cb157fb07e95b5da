package share

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// statXattr holds what the host's inode cannot, see the package doc.
const statXattr = "user.berth.stat"

// override is the content of statXattr.
type override struct {
	uid, gid int64  // -1: whoever asks
	mode     uint32 // with type bits; 0: the host's
	rdev     uint32
}

var noOverride = override{uid: -1, gid: -1}

func (o override) String() string {
	return fmt.Sprintf("%d:%d:%o:%d", o.uid, o.gid, o.mode, o.rdev)
}

// parseOverride reads statXattr. Whatever is wrong with it makes it void: the
// host's user may have written it.
func parseOverride(s string) (override, bool) {
	part := strings.Split(s, ":")
	if len(part) != 4 {
		return noOverride, false
	}
	uid, err1 := strconv.ParseInt(part[0], 10, 64)
	gid, err2 := strconv.ParseInt(part[1], 10, 64)
	mode, err3 := strconv.ParseUint(part[2], 8, 32)
	rdev, err4 := strconv.ParseUint(part[3], 10, 32)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			return noOverride, false
		}
	}
	const maxID = 1<<32 - 2
	if uid < -1 || uid > maxID || gid < -1 || gid > maxID || mode > 0o177777 {
		return noOverride, false
	}
	return override{uid, gid, uint32(mode), uint32(rdev)}, true
}

// hostMode is the permission bits a guest's mode gets on the host: the owner
// keeps access and set-id bits stay away.
func hostMode(mode, kind uint32) uint32 {
	if kind == unix.S_IFDIR {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// load reads a node's override. Links and the host's own special files have none.
func (n *node) load() override {
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		return noOverride
	}
	var buf [64]byte
	size, err := unix.Getxattr(path(n.fd), statXattr, buf[:])
	if err != nil {
		return noOverride
	}
	o, _ := parseOverride(string(buf[:size]))
	return o
}

func (n *node) store(o override) fuse.Status {
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		return fuse.EPERM
	}
	return errnoOK(unix.Setxattr(path(n.fd), statXattr, []byte(o.String()), 0))
}

func errnoOK(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return errno(err)
}

// apply lays o over what the host says.
func (o override) apply(st *unix.Stat_t, who *fuse.Caller, out *fuse.Attr) {
	out.Uid, out.Gid = who.Uid, who.Gid
	if o.uid >= 0 {
		out.Uid = uint32(o.uid)
	}
	if o.gid >= 0 {
		out.Gid = uint32(o.gid)
	}
	out.Mode = st.Mode &^ (unix.S_ISUID | unix.S_ISGID)
	kind := st.Mode & unix.S_IFMT
	if o.mode == 0 || hostMode(o.mode, kind) != st.Mode&0o777 {
		return // none, or the host's user changed the mode since
	}
	switch okind := o.mode & unix.S_IFMT; {
	case okind == kind:
		out.Mode = o.mode
	case kind == unix.S_IFREG && st.Size == 0 && isSpecial(okind):
		out.Mode = o.mode
		out.Rdev = o.rdev
	}
}

func isSpecial(kind uint32) bool {
	return kind == unix.S_IFCHR || kind == unix.S_IFBLK || kind == unix.S_IFIFO || kind == unix.S_IFSOCK
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
	n.load().apply(st, who, out)
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
	const owners = fuse.FATTR_UID | fuse.FATTR_GID
	if in.Valid&(fuse.FATTR_MODE|owners|fuse.FATTR_KILL_SUIDGID) == 0 {
		return fuse.OK
	}
	if n.kind == unix.S_IFLNK {
		// A link's owner and mode matter to nobody and have no place to be kept.
		return fuse.OK
	}
	o := n.load()
	before := o
	if in.Valid&fuse.FATTR_UID != 0 {
		o.uid = int64(in.Uid)
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		o.gid = int64(in.Gid)
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		kind := n.kind
		if isSpecial(o.mode & unix.S_IFMT) {
			kind = o.mode & unix.S_IFMT
		}
		o.mode = kind | in.Mode&0o7777
		if err := unix.Fchmodat(unix.AT_FDCWD, path(n.fd), hostMode(in.Mode, n.kind), 0); err != nil {
			return errno(err)
		}
		if o.mode == kind|hostMode(in.Mode, n.kind) && o.uid < 0 && o.gid < 0 && !isSpecial(kind) {
			o.mode = 0 // the host's inode says it all
		}
	}
	if in.Valid&(owners|fuse.FATTR_KILL_SUIDGID) != 0 && n.kind == unix.S_IFREG && in.Valid&fuse.FATTR_MODE == 0 {
		o.mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if o == before {
		return fuse.OK
	}
	if o == noOverride {
		unix.Removexattr(path(n.fd), statXattr)
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

// visible says whether the guest may use an extended attribute: users' own only.
func visible(attr string) bool {
	return strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.berth.")
}

// GetXAttr reads an extended attribute.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if !visible(attr) {
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
		if visible(name) {
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
	if !visible(attr) {
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
	if !visible(attr) {
		return fuse.ENOATTR
	}
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	return errnoOK(unix.Removexattr(path(n.fd), attr))
}
