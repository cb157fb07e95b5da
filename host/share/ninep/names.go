package ninep

import (
	"os"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"

	"github.com/berthvm/berth/host/share/owner"
)

// change is the guard of what changes a name in the folder.
func (f *file) change(name string) error {
	if err := f.writable(); err != nil {
		return err
	}
	if f.dir == nil {
		return linux.ENOTDIR
	}
	if err := checkName(name); err != nil {
		return err
	}
	if f.share.isHidden(f.dir.self, name, nil) {
		return linux.EACCES
	}
	return nil
}

// owns is the group that a new file gets, and the file's user.
func (f *file) owns(gid p9.GID) (uid, group uint32) {
	if !gid.Ok() {
		return f.user, f.user
	}
	return f.user, uint32(gid)
}

// born completes a new file, or removes it again: it notes what its inode cannot
// say.
func (f *file) born(name string, mode, rdev, kind uint32, gid p9.GID) (*file, error) {
	made, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	uid, group := f.owns(gid)
	o := owner.Born(uid, group, mode, rdev, kind)
	err = made.with(os.O_RDONLY, func(h *os.File) error {
		// The process's own umask is the host's business, not the guest's.
		if err := h.Chmod(os.FileMode(owner.HostMode(mode, kind))); err != nil && !noModes(err) {
			return err
		}
		if o == owner.None {
			return nil
		}
		return storeOverride(h, o)
	})
	if err != nil {
		made.Close()
		f.dir.root.Remove(name)
		return nil, errno(err)
	}
	return made, nil
}

// made is born for calls that want to know the file only.
func (f *file) made(name string, mode, rdev, kind uint32, gid p9.GID) (p9.QID, error) {
	made, err := f.born(name, mode, rdev, kind, gid)
	if err != nil {
		return p9.QID{}, err
	}
	defer made.Close()
	return made.qid()
}

// Create implements p9.File.
func (f *file) Create(name string, flags p9.OpenFlags, permissions p9.FileMode, _ p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	fail := func(err error) (p9.File, p9.QID, uint32, error) { return nil, p9.QID{}, 0, errno(err) }
	if err := f.change(name); err != nil {
		return fail(err)
	}
	h, err := f.dir.root.OpenFile(name, hostFlags(flags)&^os.O_TRUNC|os.O_CREATE|os.O_EXCL, 0o600)
	const exclusive = 0o200 // Linux's O_EXCL
	if os.IsExist(err) && flags&exclusive == 0 {
		return f.openTheirs(name, flags) // somebody on the host was quicker
	}
	if err != nil {
		return fail(err)
	}
	made, err := f.born(name, owner.Regular|uint32(permissions)&0o7777, 0, owner.Regular, gid)
	if err != nil {
		h.Close()
		return fail(err)
	}
	made.open, made.writes = h, hostFlags(flags)&(os.O_WRONLY|os.O_RDWR) != 0
	qid, err := made.qid()
	if err != nil {
		made.Close()
		return fail(err)
	}
	return made, qid, 0, nil
}

func (f *file) openTheirs(name string, flags p9.OpenFlags) (p9.File, p9.QID, uint32, error) {
	theirs, err := f.lookup(name)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	qid, unit, err := theirs.Open(flags)
	if err != nil {
		theirs.Close()
		return nil, p9.QID{}, 0, err
	}
	return theirs, qid, unit, nil
}

// Mkdir implements p9.File.
func (f *file) Mkdir(name string, permissions p9.FileMode, _ p9.UID, gid p9.GID) (p9.QID, error) {
	if err := f.change(name); err != nil {
		return p9.QID{}, err
	}
	if err := f.dir.root.Mkdir(name, 0o700); err != nil {
		return p9.QID{}, errno(err)
	}
	return f.made(name, owner.Dir|uint32(permissions)&0o7777, 0, owner.Dir, gid)
}

// Symlink implements p9.File. Where it points is the guest's business: the host
// never follows it.
func (f *file) Symlink(target, name string, _ p9.UID, _ p9.GID) (p9.QID, error) {
	if err := f.change(name); err != nil {
		return p9.QID{}, err
	}
	if err := f.dir.root.Symlink(target, name); err != nil {
		return p9.QID{}, errno(err)
	}
	made, err := f.lookup(name)
	if err != nil {
		return p9.QID{}, err
	}
	defer made.Close()
	return made.qid()
}

// Mknod implements p9.File. What is not a regular file is one on the host all the
// same.
func (f *file) Mknod(name string, mode p9.FileMode, major, minor uint32, _ p9.UID, gid p9.GID) (p9.QID, error) {
	if err := f.change(name); err != nil {
		return p9.QID{}, err
	}
	kind := uint32(mode) & owner.KindMask
	if kind != owner.Regular && !owner.IsSpecial(kind) {
		return p9.QID{}, linux.EINVAL
	}
	h, err := f.dir.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return p9.QID{}, errno(err)
	}
	h.Close()
	rdev := minor&0xff | major<<8 | minor&^0xff<<12 // Linux's new_encode_dev
	return f.made(name, uint32(mode), rdev, owner.Regular, gid)
}

// Link implements p9.File.
func (f *file) Link(target p9.File, name string) error {
	if err := f.change(name); err != nil {
		return err
	}
	old, ok := target.(*file)
	if !ok || old.parent == nil || old.dir != nil {
		return linux.EPERM
	}
	if _, err := old.stat(); err != nil {
		return errno(err)
	}
	if err := linkAt(f.share, old.parent, old.name, f.dir, name); err != nil {
		return errno(err)
	}
	st, err := f.dir.root.Lstat(name)
	if err == nil && !os.SameFile(st, old.self) {
		f.dir.root.Remove(name) // somebody on the host was quicker
		err = errStale
	}
	return errno(err)
}

// RenameAt implements p9.File.
func (f *file) RenameAt(from string, dir p9.File, to string) error {
	target, ok := dir.(*file)
	if !ok {
		return linux.EXDEV
	}
	if err := f.change(from); err != nil {
		return err
	}
	if err := target.change(to); err != nil {
		return err
	}
	for _, end := range []struct {
		dir  *file
		name string
	}{{f, from}, {target, to}} {
		st, err := end.dir.dir.root.Lstat(end.name)
		if err == nil && among(f.share.pinned, st) {
			return linux.EBUSY
		}
		if err == nil && among(f.share.secret, st) {
			return linux.ENOENT
		}
	}
	return errno(renameAt(f.share, f.dir, from, target.dir, to))
}

// Rename implements p9.File. The library calls RenameAt instead.
func (f *file) Rename(p9.File, string) error { return linux.ENOSYS }

// UnlinkAt implements p9.File.
func (f *file) UnlinkAt(name string, flags uint32) error {
	if err := f.change(name); err != nil {
		return err
	}
	st, err := f.entry(name)
	if err != nil {
		return err
	}
	const removeDir = 0x200 // AT_REMOVEDIR
	switch {
	case among(f.share.pinned, st):
		return linux.EBUSY
	case flags&removeDir != 0 && !st.IsDir():
		return linux.ENOTDIR
	case flags&removeDir == 0 && st.IsDir():
		return linux.EISDIR
	}
	return errno(f.dir.root.Remove(name))
}
