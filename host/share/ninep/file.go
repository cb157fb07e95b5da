package ninep

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"

	"github.com/berthvm/berth/host/share/owner"
)

// folder is an open folder that files share. It is closed with the last of them.
type folder struct {
	root *os.Root
	self os.FileInfo
	refs atomic.Int32
}

func newFolder(root *os.Root, self os.FileInfo) *folder {
	d := &folder{root: root, self: self}
	d.refs.Store(1)
	return d
}

func (d *folder) hold() *folder {
	d.refs.Add(1)
	return d
}

func (d *folder) release() {
	if d != nil && d.refs.Add(-1) == 0 {
		d.root.Close()
	}
}

// file is a file that a user of the guest has at hand, by its name in its folder.
// The library serializes what must be: package p9 says which calls may come at
// once. The share's root has no parent.
type file struct {
	p9.DefaultWalkGetAttr
	share *Share
	user  uint32

	parent *folder
	name   string
	self   os.FileInfo // what name was when it was looked up
	dir    *folder     // a folder's own

	open    *os.File
	writes  bool        // open may be written to
	entries []p9.Dirent // of an open folder
}

// errStale says that a name leads to another file than it did: the guest looks anew.
var errStale error = linux.ESTALE

// Close implements p9.File.
func (f *file) Close() error {
	f.share.files.Add(-1)
	if f.open != nil {
		f.open.Close()
	}
	f.parent.release()
	f.dir.release()
	return nil
}

// clone is another hold on the same file, not open.
func (f *file) clone() (*file, error) {
	c := &file{share: f.share, user: f.user, name: f.name, self: f.self}
	if f.parent != nil {
		c.parent = f.parent.hold()
	}
	if f.dir != nil {
		c.dir = f.dir.hold()
	}
	return f.share.newFile(c)
}

// Walk implements p9.File.
func (f *file) Walk(names []string) ([]p9.QID, p9.File, error) {
	at, err := f.clone()
	if err != nil {
		return nil, nil, err
	}
	var qids []p9.QID
	for _, name := range names {
		next, err := at.lookup(name)
		at.Close()
		if err != nil {
			return nil, nil, err
		}
		at = next
		qid, err := at.qid()
		if err != nil {
			at.Close()
			return nil, nil, err
		}
		qids = append(qids, qid)
	}
	return qids, at, nil
}

// lookup finds a name in a folder.
func (f *file) lookup(name string) (*file, error) {
	st, err := f.entry(name)
	if err != nil {
		return nil, err
	}
	next := &file{share: f.share, user: f.user, parent: f.dir.hold(), name: name, self: st}
	if st.IsDir() {
		if next.dir, err = openFolder(f.dir.root, name, st); err != nil {
			next.parent.release()
			return nil, errno(err)
		}
	}
	return f.share.newFile(next)
}

// entry looks at a name in a folder.
func (f *file) entry(name string) (os.FileInfo, error) {
	if f.dir == nil {
		return nil, linux.ENOTDIR
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	st, err := f.dir.root.Lstat(name)
	if err != nil {
		return nil, errno(err)
	}
	if f.share.isHidden(f.dir.self, name, st) {
		return nil, linux.ENOENT
	}
	return st, nil
}

// openFolder opens the folder name, if it still is the one that st is of.
func openFolder(parent *os.Root, name string, st os.FileInfo) (*folder, error) {
	root, err := parent.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	self, err := root.Stat(".")
	if err == nil && !os.SameFile(self, st) {
		err = errStale
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return newFolder(root, self), nil
}

// checkName refuses what is not one name.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || !validName(name):
		return linux.EINVAL
	case len(name) > maxName:
		return linux.ENAMETOOLONG
	}
	return nil
}

// maxName is Linux's, in bytes.
const maxName = 255

// stat looks at the file now. What it was opened from may have another name, or
// none.
func (f *file) stat() (os.FileInfo, error) {
	switch {
	case f.open != nil:
		return f.open.Stat()
	case f.dir != nil:
		return f.dir.root.Stat(".")
	}
	st, err := f.parent.root.Lstat(f.name)
	if err == nil && !os.SameFile(st, f.self) {
		err = errStale
	}
	return st, err
}

// kindOf is owner's word for what the file is on the host.
func kindOf(st os.FileInfo) uint32 {
	switch mode := st.Mode(); {
	case mode.IsDir():
		return owner.Dir
	case mode&os.ModeSymlink != 0:
		return owner.Link
	case mode.IsRegular():
		return owner.Regular
	case mode&os.ModeCharDevice != 0:
		return owner.Char
	case mode&os.ModeDevice != 0:
		return owner.Block
	case mode&os.ModeNamedPipe != 0:
		return owner.FIFO
	case mode&os.ModeSocket != 0:
		return owner.Socket
	}
	return owner.Regular
}

// with opens the file for the call of do, unless it is open. It must be a regular
// file or a folder: opening others has effects.
func (f *file) with(flags int, do func(*os.File) error) error {
	if f.open != nil && (flags == os.O_RDONLY || f.writes) {
		return do(f.open)
	}
	h, err := f.openFile(flags)
	if err != nil {
		return err
	}
	defer h.Close()
	return do(h)
}

// openFile opens the file anew.
func (f *file) openFile(flags int) (*os.File, error) {
	if f.dir != nil {
		return f.dir.root.Open(".")
	}
	if f.self.Mode()&os.ModeType != 0 {
		return nil, linux.ENXIO
	}
	return openSame(f.parent.root, f.name, flags, f.self)
}

// openSame opens a regular file, if it still is the one that st is of. It has no
// effect on another: truncation comes later.
func openSame(root *os.Root, name string, flags int, st os.FileInfo) (*os.File, error) {
	h, err := root.OpenFile(name, flags&^os.O_TRUNC|nonBlock, 0)
	if err != nil {
		return nil, err
	}
	now, err := h.Stat()
	if err == nil && !os.SameFile(now, st) {
		err = errStale
	}
	if err == nil && flags&os.O_TRUNC != 0 {
		err = h.Truncate(0)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (f *file) writable() error {
	if f.share.opts.ReadOnly {
		return linux.EROFS
	}
	return nil
}

// override is what the guest has done to owner and mode.
func (f *file) override(kind uint32) owner.Override {
	o := owner.None
	if !owner.Kept(kind) {
		return o
	}
	f.with(os.O_RDONLY, func(h *os.File) error {
		o = loadOverride(h)
		return nil
	})
	return o
}

// qid identifies the file to the guest.
func (f *file) qid() (p9.QID, error) {
	st, err := f.stat()
	if err != nil {
		return p9.QID{}, errno(err)
	}
	return f.qidOf(st, p9.FileMode(f.seen(st).Mode))
}

func (f *file) qidOf(st os.FileInfo, mode p9.FileMode) (p9.QID, error) {
	id, err := f.number(st)
	if err != nil {
		return p9.QID{}, errno(err)
	}
	return p9.QID{Type: mode.QIDType(), Version: uint32(st.ModTime().UnixNano() >> 20), Path: id}, nil
}

// seen is owner and mode for the file's user. The guest's kernel keeps one owner
// for all users, and asks it who may use a folder: one that belongs to whoever asks
// is open to all, or it would belong to who has asked last.
func (f *file) seen(st os.FileInfo) owner.Stat {
	kind := kindOf(st)
	o := f.override(kind)
	seen := o.Apply(hostMode(st, kind, o), st.Size(), f.user, f.user)
	if kind == owner.Dir && o.UID < 0 {
		seen.Mode |= seen.Mode&0o700>>3 | seen.Mode&0o700>>6
	}
	return seen
}

// GetAttr implements p9.File.
func (f *file) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	fail := func(err error) (p9.QID, p9.AttrMask, p9.Attr, error) {
		return p9.QID{}, p9.AttrMask{}, p9.Attr{}, errno(err)
	}
	st, err := f.stat()
	if err != nil {
		return fail(err)
	}
	seen := f.seen(st)
	qid, err := f.qidOf(st, p9.FileMode(seen.Mode))
	if err != nil {
		return fail(err)
	}
	a := p9.Attr{
		Mode: p9.FileMode(seen.Mode), UID: p9.UID(seen.UID), GID: p9.GID(seen.GID), RDev: p9.Dev(seen.Rdev),
		Size: uint64(st.Size()), BlockSize: 4096,
	}
	f.fill(st, &a)
	mask := p9.AttrMask{Mode: true, NLink: true, UID: true, GID: true, RDev: true, ATime: true, MTime: true, CTime: true,
		INo: true, Size: true, Blocks: true}
	return qid, mask, a, nil
}

// SetAttr implements p9.File.
func (f *file) SetAttr(valid p9.SetAttrMask, in p9.SetAttr) error {
	if err := f.writable(); err != nil {
		return err
	}
	st, err := f.stat()
	if err != nil {
		return errno(err)
	}
	kind := kindOf(st)
	if kind == owner.Link {
		return nil // its owner and mode matter to nobody and have no place to be kept
	}
	if err := f.setOwner(kind, valid, in); err != nil {
		return errno(err)
	}
	if valid.Size {
		if kind != owner.Regular {
			return linux.EINVAL
		}
		if err := f.with(os.O_WRONLY, func(h *os.File) error { return h.Truncate(int64(in.Size)) }); err != nil {
			return errno(err)
		}
	}
	if valid.ATime || valid.MTime {
		return errno(f.setTimes(st, valid, in))
	}
	return nil
}

func (f *file) setOwner(kind uint32, valid p9.SetAttrMask, in p9.SetAttr) error {
	var c owner.Change
	uid, gid, mode := uint32(in.UID), uint32(in.GID), uint32(in.Permissions)
	if valid.UID {
		c.UID = &uid
	}
	if valid.GID {
		c.GID = &gid
	}
	if valid.Permissions {
		c.Mode = &mode
	}
	if c.Empty() {
		return nil
	}
	if !owner.Kept(kind) {
		return linux.EPERM
	}
	return f.with(os.O_RDONLY, func(h *os.File) error {
		before := loadOverride(h)
		after := before.Change(kind, c)
		if c.Mode != nil {
			if err := h.Chmod(os.FileMode(owner.HostMode(mode, kind))); err != nil && !noModes(err) {
				return err
			}
		}
		if after == before {
			return nil
		}
		return storeOverride(h, after)
	})
}

func (f *file) setTimes(st os.FileInfo, valid p9.SetAttrMask, in p9.SetAttr) error {
	pick := func(set, given bool, sec, nsec uint64) time.Time {
		switch {
		case !set:
			return time.Time{} // leaves it
		case given:
			return time.Unix(int64(sec), int64(nsec))
		}
		return time.Now()
	}
	atime := pick(valid.ATime, valid.ATimeNotSystemTime, in.ATimeSeconds, in.ATimeNanoSeconds)
	mtime := pick(valid.MTime, valid.MTimeNotSystemTime, in.MTimeSeconds, in.MTimeNanoSeconds)
	if f.dir == nil {
		return f.parent.root.Chtimes(f.name, atime, mtime)
	}
	return f.dir.root.Chtimes(".", atime, mtime)
}

// Open implements p9.File. It opens regular files and folders only: the guest's
// kernel opens all other kinds itself.
func (f *file) Open(mode p9.OpenFlags) (p9.QID, uint32, error) {
	flags := hostFlags(mode)
	if flags != os.O_RDONLY {
		if err := f.writable(); err != nil {
			return p9.QID{}, 0, err
		}
	}
	h, err := f.openFile(flags)
	if err != nil {
		return p9.QID{}, 0, errno(err)
	}
	f.open, f.writes = h, flags&(os.O_WRONLY|os.O_RDWR) != 0
	if f.dir != nil {
		if err := f.list(); err != nil {
			return p9.QID{}, 0, errno(err)
		}
	}
	qid, err := f.qid()
	return qid, 0, err
}

// hostFlags are the guest's as far as the host's file should see them. O_APPEND is
// not among them: the guest's kernel says at which offset to write.
func hostFlags(mode p9.OpenFlags) int {
	flags := [4]int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR}[mode&3]
	const truncate, sync, dataSync = 0o1000, 0o4000000, 0o10000 // Linux's
	if mode&truncate != 0 {
		flags |= os.O_TRUNC
	}
	if mode&(sync|dataSync) != 0 {
		flags |= os.O_SYNC
	}
	return flags
}

// list reads the folder's names, without those that are hidden.
func (f *file) list() error {
	entries, err := f.open.ReadDir(-1)
	if err != nil {
		return err
	}
	f.entries = make([]p9.Dirent, 0, 2+len(entries))
	add := func(name string, kind p9.QIDType, id uint64) {
		f.entries = append(f.entries, p9.Dirent{QID: p9.QID{Type: kind, Path: id}, Offset: uint64(len(f.entries) + 1), Type: kind, Name: name})
	}
	self, err := f.qid()
	if err != nil {
		return err
	}
	add(".", self.Type, self.Path)
	add("..", self.Type, self.Path) // which the guest looks up by itself
	for _, e := range entries {
		st, err := f.dir.root.Lstat(e.Name())
		if err != nil || f.share.isHidden(f.dir.self, e.Name(), st) || checkName(e.Name()) != nil {
			continue // it is gone, or not for the guest
		}
		child := &file{share: f.share, user: f.user, parent: f.dir, name: e.Name(), self: st}
		id, err := child.number(st)
		if err != nil {
			continue
		}
		add(e.Name(), p9.FileMode(kindOf(st)).QIDType(), id)
	}
	return nil
}

// Readdir implements p9.File.
func (f *file) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	if f.dir == nil {
		return nil, linux.ENOTDIR
	}
	if offset > uint64(len(f.entries)) {
		return nil, nil
	}
	const smallest = 24 // bytes of an entry, without its name
	rest := f.entries[offset:]
	return rest[:min(len(rest), int(count)/smallest)], nil
}

// ReadAt implements p9.File.
func (f *file) ReadAt(p []byte, offset int64) (int, error) {
	if f.open == nil {
		return 0, linux.EBADF
	}
	n, err := f.open.ReadAt(p, offset)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, errno(err)
}

// WriteAt implements p9.File.
func (f *file) WriteAt(p []byte, offset int64) (int, error) {
	if f.open == nil {
		return 0, linux.EBADF
	}
	n, err := f.open.WriteAt(p, offset)
	if n > 0 {
		return n, nil
	}
	return n, errno(err)
}

// FSync implements p9.File.
func (f *file) FSync() error {
	if f.open == nil {
		return linux.EBADF
	}
	return errno(f.open.Sync())
}

// Lock implements p9.File. The guest's kernel has looked at its own locks before it
// asks; the host's programs see none.
func (f *file) Lock(int, p9.LockType, p9.LockFlags, uint64, uint64, string) (p9.LockStatus, error) {
	return p9.LockStatusOK, nil
}

// GetXattr implements p9.File, as the following do; no request for them gets here.
func (f *file) GetXattr(string) ([]byte, error) { return nil, linux.ENOTSUP }

// ListXattrs implements p9.File.
func (f *file) ListXattrs() ([]string, error) { return nil, linux.ENOTSUP }

// SetXattr implements p9.File.
func (f *file) SetXattr(string, []byte, p9.XattrFlags) error { return linux.ENOTSUP }

// RemoveXattr implements p9.File.
func (f *file) RemoveXattr(string) error { return linux.ENOTSUP }

// Readlink implements p9.File.
func (f *file) Readlink() (string, error) {
	if f.parent == nil {
		return "", linux.EINVAL
	}
	target, err := f.parent.root.Readlink(f.name)
	return target, errno(err)
}

// Renamed implements p9.File.
func (f *file) Renamed(dir p9.File, name string) {
	if d, ok := dir.(*file); ok && d.dir != nil {
		f.parent.release()
		f.parent, f.name = d.dir.hold(), name
	}
}
