package share

import (
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a folder. The guest's offsets are the host's own (d_off), so a
// guest that seeks back finds what it found before.
type dirStream struct {
	mu   sync.Mutex
	fd   int
	next int64  // offset of what buf holds next
	buf  []byte // raw linux_dirent64 records
	all  [32 << 10]byte
}

// dirent is one record.
type dirent struct {
	ino  uint64
	off  int64
	kind uint8
	name string
}

// OpenDir opens a folder.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	if status := f.mayOpen(); !status.Ok() {
		return status
	}
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	f.opened(&handle{fd: fd, dir: &dirStream{fd: fd}}, out)
	out.OpenFlags = 0
	return fuse.OK
}

// ReleaseDir closes a folder.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.closeHandle(in.Fh) }

// FsyncDir puts a folder's names on the host's disk.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, status := f.handle(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	return flush(h, in)
}

// peek returns the record at off without going past it; ok is false at the end.
func (d *dirStream) peek(off int64) (e dirent, ok bool, err error) {
	if off != d.next {
		if _, err := unix.Seek(d.fd, off, unix.SEEK_SET); err != nil {
			return dirent{}, false, err
		}
		d.next, d.buf = off, nil
	}
	if len(d.buf) == 0 {
		n, err := unix.Getdents(d.fd, d.all[:])
		if err != nil || n == 0 {
			return dirent{}, false, err
		}
		d.buf = d.all[:n]
	}
	const head = 19 // ino, off, reclen, type
	size := int(binary.NativeEndian.Uint16(d.buf[16:]))
	name := d.buf[head:size]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	return dirent{
		ino:  binary.NativeEndian.Uint64(d.buf),
		off:  int64(binary.NativeEndian.Uint64(d.buf[8:])),
		kind: d.buf[18],
		name: string(name),
	}, true, nil
}

// advance goes past the record e that peek returned.
func (d *dirStream) advance(e dirent) {
	d.buf = d.buf[binary.NativeEndian.Uint16(d.buf[16:]):]
	d.next = e.off
}

// ReadDir lists names.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ *node, e dirent) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.name, Ino: e.ino, Mode: uint32(e.kind) << 12, Off: uint64(e.off)})
	})
}

// ReadDirPlus lists names with their attributes, which saves the guest a lookup
// for each.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(dir *node, e dirent) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.name, Ino: e.ino, Mode: uint32(e.kind) << 12, Off: uint64(e.off)})
		if entry == nil {
			return false
		}
		if e.name != "." && e.name != ".." {
			// A name that vanished meanwhile keeps node 0: the guest looks itself.
			f.lookup(dir, e.name, &in.Caller, entry)
		}
		return true
	})
}

// list calls add for each record from the guest's offset until it has no room.
func (f *FS) list(in *fuse.ReadIn, add func(*node, dirent) bool) fuse.Status {
	h, status := f.handle(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	if h.dir == nil {
		return fuse.EBADF
	}
	dir, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	h.dir.mu.Lock()
	defer h.dir.mu.Unlock()
	for off := int64(in.Offset); ; {
		e, ok, err := h.dir.peek(off)
		if err != nil {
			return errno(err)
		}
		if !ok {
			return fuse.OK
		}
		if !f.isHidden(dir, e.name) && !f.secret[file{dir.file.dev, e.ino}] && !add(dir, e) {
			return fuse.OK
		}
		h.dir.advance(e)
		off = e.off
	}
}
