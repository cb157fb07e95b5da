package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/share/owner"
)

// change opens a folder for a change to one of its names; the caller releases it.
func (f *FS) change(id uint64, name string) (*node, fuse.Status) {
	if status := f.writable(); !status.Ok() {
		return nil, status
	}
	dir, status := f.dir(id, name)
	if status.Ok() && f.isHidden(dir, name) {
		f.release(dir)
		return nil, fuse.EACCES
	}
	return dir, status
}

// born completes a new file: it looks it up and notes what its inode cannot say.
func (f *FS) born(dir *node, name string, who *fuse.Caller, mode, rdev uint32, out *fuse.EntryOut) fuse.Status {
	if status := f.lookup(dir, name, who, out); !status.Ok() {
		return status
	}
	n, status := f.node(out.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	o := owner.Born(who.Uid, who.Gid, mode, rdev, n.kind)
	if o == owner.None {
		return fuse.OK
	}
	if status := n.store(o); !status.Ok() {
		return status
	}
	var attr fuse.AttrOut
	status = f.getattr(n, who, &attr)
	out.Attr = attr.Attr
	return status
}

// undo removes a file that could not be completed.
func (f *FS) undo(dir *node, name string, flags int, out *fuse.EntryOut, status fuse.Status) fuse.Status {
	if !status.Ok() {
		unix.Unlinkat(dir.fd, name, flags)
		if out.NodeId != 0 {
			f.Forget(out.NodeId, 1)
			out.NodeId = 0
		}
	}
	return status
}

// Mknod makes a file of any kind but folder and link. What is not a regular file
// is one on the host all the same.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.change(in.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	mode := in.Mode
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	if kind := mode & unix.S_IFMT; kind != unix.S_IFREG && !owner.IsSpecial(kind) {
		return fuse.EINVAL
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return errno(err)
	}
	err = unix.Fchmod(fd, owner.HostMode(mode, unix.S_IFREG))
	unix.Close(fd)
	if err != nil {
		return f.undo(dir, name, 0, out, errno(err))
	}
	return f.undo(dir, name, 0, out, f.born(dir, name, &in.Caller, mode, in.Rdev, out))
}

// Mkdir makes a folder.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.change(in.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	if err := unix.Mkdirat(dir.fd, name, owner.HostMode(in.Mode, unix.S_IFDIR)); err != nil {
		return errno(err)
	}
	if status := f.born(dir, name, &in.Caller, unix.S_IFDIR|in.Mode&0o7777, 0, out); !status.Ok() {
		return f.undo(dir, name, unix.AT_REMOVEDIR, out, status)
	}
	n, status := f.node(out.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	// The process's own umask is the host's business, not the guest's.
	return errnoOK(unix.Fchmodat(unix.AT_FDCWD, path(n.fd), owner.HostMode(in.Mode, unix.S_IFDIR), 0))
}

// Symlink makes a symbolic link. Where it points is the guest's business: the
// host never follows it.
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.change(in.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	if err := unix.Symlinkat(target, dir.fd, name); err != nil {
		return errno(err)
	}
	return f.undo(dir, name, 0, out, f.lookup(dir, name, &in.Caller, out))
}

// Readlink reads a symbolic link.
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return nil, status
	}
	defer f.release(n)
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, errno(err)
	}
	return buf[:size], fuse.OK
}

// Link makes a hard link.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.change(in.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	n, status := f.node(in.Oldnodeid)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	if err := unix.Linkat(unix.AT_FDCWD, path(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return errno(err)
	}
	return f.lookup(dir, name, &in.Caller, out)
}

// Unlink removes a file's name.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, 0)
}

// Rmdir removes an empty folder.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, unix.AT_REMOVEDIR)
}

func (f *FS) remove(id uint64, name string, flags int) fuse.Status {
	dir, status := f.change(id, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	old := f.named(dir, name)
	defer old.drop()
	if old.pinned {
		return fuse.Status(unix.EBUSY)
	}
	if err := unix.Unlinkat(dir.fd, name, flags); err != nil {
		return errno(err)
	}
	old.remove(dir, name)
	return fuse.OK
}

// Rename moves a name, also onto another or in exchange for it.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	src, status := f.change(in.NodeId, from)
	if !status.Ok() {
		return status
	}
	defer f.release(src)
	dst, status := f.change(in.Newdir, to)
	if !status.Ok() {
		return status
	}
	defer f.release(dst)
	moving, target := f.named(src, from), f.named(dst, to)
	defer moving.drop()
	defer target.drop()
	if moving.pinned || target.pinned {
		return fuse.Status(unix.EBUSY)
	}
	if err := unix.Renameat2(src.fd, from, dst.fd, to, uint(in.Flags)); err != nil {
		return errno(err)
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		target.place(src, from)
	} else if target.node != moving.node {
		target.remove(dst, to)
	}
	moving.place(dst, to)
	return fuse.OK
}

// Create makes and opens a regular file.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, status := f.change(in.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	if status := f.mayOpen(); !status.Ok() {
		return status
	}
	const create = unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir.fd, name, openFlags(in.Flags)&^unix.O_TRUNC|create, 0o600)
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		// Somebody on the host was quicker: open theirs.
		if status := f.lookup(dir, name, &in.Caller, &out.EntryOut); !status.Ok() {
			return status
		}
		return f.openNode(out.NodeId, in.Flags, in.OpenFlags, &out.OpenOut)
	}
	if err != nil {
		return errno(err)
	}
	h := &handle{fd: fd}
	mode := unix.S_IFREG | in.Mode&0o7777
	if err = unix.Fchmod(fd, owner.HostMode(mode, unix.S_IFREG)); err != nil {
		status = errno(err)
	} else {
		status = f.born(dir, name, &in.Caller, mode, 0, &out.EntryOut)
	}
	if !status.Ok() {
		unix.Close(fd)
		return f.undo(dir, name, 0, &out.EntryOut, status)
	}
	f.opened(h, &out.OpenOut)
	return fuse.OK
}
