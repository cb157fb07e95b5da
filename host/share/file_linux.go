package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/share/owner"
)

// openFlags are the guest's open flags as far as the host's file should see them.
// O_APPEND is not among them: the guest's kernel says at which offset to write.
func openFlags(guest uint32) int {
	return int(guest)&(unix.O_ACCMODE|unix.O_TRUNC|unix.O_SYNC|unix.O_DSYNC) | unix.O_CLOEXEC
}

// mayOpen says whether the guest may have one more file open.
func (f *FS) mayOpen() fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.handles) >= f.mostHandles {
		return fuse.Status(unix.ENFILE)
	}
	return fuse.OK
}

// opened hands h to the guest.
func (f *FS) opened(h *handle, out *fuse.OpenOut) {
	f.mu.Lock()
	f.nextID++
	f.handles[f.nextID] = h
	out.Fh = f.nextID
	f.mu.Unlock()
	// The guest drops its pages when it sees another mtime, within Validity.
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
}

// handle returns the open file or folder fh stands for, held until done.
func (f *FS) handle(fh uint64) (*handle, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.handles[fh]
	if h == nil {
		return nil, fuse.EBADF
	}
	h.uses++
	return h, fuse.OK
}

// regular is handle for what is not a folder.
func (f *FS) regular(fh uint64) (*handle, fuse.Status) {
	h, status := f.handle(fh)
	if status.Ok() && h.dir != nil {
		f.done(h)
		return nil, fuse.EBADF
	}
	return h, status
}

func (f *FS) done(h *handle) {
	f.mu.Lock()
	h.uses--
	if h.released && h.uses == 0 {
		unix.Close(h.fd)
	}
	f.mu.Unlock()
}

// Open opens a regular file. The guest's kernel opens all other kinds itself; a
// guest that asks all the same must not make the host open a device.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return f.openNode(in.NodeId, in.Flags, in.Mode, out)
}

// openNode opens a node with flags of open's, and of FUSE's own.
func (f *FS) openNode(id uint64, flags, more uint32, out *fuse.OpenOut) fuse.Status {
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		if status := f.writable(); !status.Ok() {
			return status
		}
	}
	n, status := f.node(id)
	if !status.Ok() {
		return status
	}
	defer f.release(n)
	if n.kind != unix.S_IFREG {
		return fuse.Status(unix.ENXIO)
	}
	if status := f.mayOpen(); !status.Ok() {
		return status
	}
	if more&fuse.OPEN_KILL_SUIDGID != 0 {
		n.loseSetID()
	}
	fd, err := unix.Open(path(n.fd), openFlags(flags), 0)
	if err != nil {
		return errno(err)
	}
	f.opened(&handle{fd: fd}, out)
	return fuse.OK
}

// Release closes a file.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.closeHandle(in.Fh) }

func (f *FS) closeHandle(fh uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.handles[fh]
	if h == nil {
		return
	}
	delete(f.handles, fh)
	h.released = true
	if h.uses == 0 {
		unix.Close(h.fd)
	}
}

// Read reads from an open file.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return nil, status
	}
	defer f.done(h)
	n, err := unix.Pread(h.fd, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		return nil, errno(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write writes to an open file.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(nil, in, [][]byte{data})
}

// Writev is Write with the data in pieces.
func (f *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return 0, status
	}
	defer f.done(h)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		f.loseSetID(in.NodeId)
	}
	total := 0
	for _, p := range data {
		for len(p) > 0 {
			n, err := unix.Pwrite(h.fd, p, int64(in.Offset)+int64(total))
			if err != nil {
				if total > 0 {
					return uint32(total), fuse.OK
				}
				return 0, errno(err)
			}
			total += n
			p = p[n:]
		}
	}
	return uint32(total), fuse.OK
}

// loseSetID is what a write by others than root does to a file.
func (f *FS) loseSetID(id uint64) {
	if n, status := f.node(id); status.Ok() {
		n.loseSetID()
		f.release(n)
	}
}

func (n *node) loseSetID() {
	before := n.load()
	if o := before.Change(n.kind, owner.Change{KillSetID: true}); o != before {
		n.store(o)
	}
}

// Flush is called as each descriptor in the guest is closed; errors the host
// kept for the file come out here.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	return errnoOK(unix.Close(fd))
}

// Fsync puts a file on the host's disk.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	return flush(h, in)
}

func flush(h *handle, in *fuse.FsyncIn) fuse.Status {
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC
	if in.FsyncFlags&dataOnly != 0 {
		return errnoOK(unix.Fdatasync(h.fd))
	}
	return errnoOK(unix.Fsync(h.fd))
}

// Lseek finds data and holes.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return errno(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// Fallocate reserves space or punches holes.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, status := f.regular(in.Fh)
	if !status.Ok() {
		return status
	}
	defer f.done(h)
	if in.Uid != 0 { // the guest's kernel leaves it to us
		f.loseSetID(in.NodeId)
	}
	return errnoOK(unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)))
}

// CopyFileRange copies within the host.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, status := f.regular(in.FhIn)
	if !status.Ok() {
		return 0, status
	}
	defer f.done(src)
	dst, status := f.regular(in.FhOut)
	if !status.Ok() {
		return 0, status
	}
	defer f.done(dst)
	if in.Uid != 0 {
		f.loseSetID(in.NodeIdOut)
	}
	from, to := int64(in.OffIn), int64(in.OffOut)
	const most = 1 << 30 // the answer is 32 bits wide
	n, err := unix.CopyFileRange(src.fd, &from, dst.fd, &to, int(min(in.Len, most)), int(in.Flags))
	if err != nil {
		return 0, errno(err)
	}
	return uint32(n), fuse.OK
}
