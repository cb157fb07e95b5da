package share

import (
	"container/list"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxKnown bounds the files the guest may know, whose nodes take memory.
	maxKnown = 1 << 20
	// maxDepth bounds the folders above a file that is opened anew.
	maxDepth = 1000
)

// node is a file the guest knows. The guest's kernel forgets files only when its
// memory is short, so there are more of them than a process may have descriptors:
// a node that was not used for long has none, and gets it back by its name in its
// folder, if that is still the same file. One whose name the guest has removed
// keeps its descriptor.
type node struct {
	id   uint64
	file file
	kind uint32 // S_IFMT bits on the host

	// What follows is guarded by FS.mu, but fd does not change while uses is not
	// zero and it is not -1.
	fd      int // O_PATH; -1 without one
	open    *list.Element
	born    birth // when fd is -1
	parent  uint64
	name    string
	gone    bool // it has no name any more
	lookups uint64
	uses    int // requests in flight
}

// birth tells a file from a later one with the same number.
type birth struct {
	sec  int64
	nsec uint32
}

func birthOf(fd int) birth {
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st) != nil || st.Mask&unix.STATX_BTIME == 0 {
		return birth{}
	}
	return birth{st.Btime.Sec, st.Btime.Nsec}
}

// know returns the node of name in dir, which is the open descriptor fd. It takes
// that over. The node has one lookup more and is held until release.
func (f *FS) know(dir *node, name string, fd int, st *unix.Stat_t) (*node, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, kind := identity(st), st.Mode&unix.S_IFMT
	n := f.byFile[id]
	if n != nil && (n.kind != kind || n.fd < 0 && n.born != birthOf(fd)) {
		n = nil // of a file that was deleted
	}
	if n == nil {
		if f.open.Len() >= 2*f.mostNodes || len(f.nodes) >= maxKnown {
			unix.Close(fd)
			return nil, fuse.Status(unix.ENFILE)
		}
		f.nextID++
		n = &node{id: f.nextID, fd: -1, file: id, kind: kind}
		f.nodes[n.id] = n
		f.byFile[id] = n
	}
	n.lookups++
	n.uses++
	n.parent, n.name, n.gone = dir.id, name, false
	f.adopt(n, fd)
	return n, fuse.OK
}

// adopt gives n its descriptor, or closes fd if it has one. The caller holds mu.
func (f *FS) adopt(n *node, fd int) {
	if n.fd >= 0 {
		unix.Close(fd)
		f.open.MoveToFront(n.open)
		return
	}
	n.fd = fd
	n.open = f.open.PushFront(n)
	// Close what was not used for longest. Most often that is one node.
	for tries := 0; f.open.Len() > f.mostNodes && tries < 64; tries++ {
		old := f.open.Back().Value.(*node)
		if old.uses > 0 || old.gone || old.id == fuse.FUSE_ROOT_ID {
			f.open.MoveToFront(old.open)
			continue
		}
		old.born = birthOf(old.fd)
		f.closeNode(old)
	}
}

// closeNode closes n's descriptor. The caller holds mu.
func (f *FS) closeNode(n *node) {
	if n.fd < 0 {
		return
	}
	unix.Close(n.fd)
	f.open.Remove(n.open)
	n.fd, n.open = -1, nil
}

// node returns the node the guest means, held until release.
func (f *FS) node(id uint64) (*node, fuse.Status) { return f.hold(id, 0) }

func (f *FS) hold(id uint64, depth int) (*node, fuse.Status) {
	f.mu.Lock()
	n := f.nodes[id]
	if n == nil {
		f.mu.Unlock()
		return nil, fuse.Status(unix.ESTALE)
	}
	n.uses++
	if n.fd >= 0 {
		if f.open.Len() > f.mostNodes/2 { // else the order does not matter
			f.open.MoveToFront(n.open)
		}
		f.mu.Unlock()
		return n, fuse.OK
	}
	parent, name := n.parent, n.name
	f.mu.Unlock()
	if status := f.reopen(n, parent, name, depth); !status.Ok() {
		f.release(n)
		return nil, status
	}
	return n, fuse.OK
}

// reopen gets n a descriptor by its name. A guest that is told ESTALE looks the
// name up anew.
func (f *FS) reopen(n *node, parent uint64, name string, depth int) fuse.Status {
	stale := fuse.Status(unix.ESTALE)
	if depth > maxDepth {
		return stale
	}
	dir, status := f.hold(parent, depth+1)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	if f.isHidden(dir, name) {
		return stale
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return stale
	}
	if err != nil {
		return errno(err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	born := birthOf(fd)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || identity(&st) != n.file || st.Mode&unix.S_IFMT != n.kind || n.fd < 0 && n.born != born {
		unix.Close(fd)
		return stale
	}
	f.adopt(n, fd)
	return fuse.OK
}

func (f *FS) release(n *node) {
	f.mu.Lock()
	n.uses--
	f.forgotten(n)
	f.mu.Unlock()
}

// forgotten frees n if nobody needs it. The caller holds mu.
func (f *FS) forgotten(n *node) {
	if n.lookups > 0 || n.uses > 0 || n.id == fuse.FUSE_ROOT_ID {
		return
	}
	delete(f.nodes, n.id)
	if f.byFile[n.file] == n {
		delete(f.byFile, n.file)
	}
	f.closeNode(n)
}

// Forget lets go of lookups that the guest no longer needs.
func (f *FS) Forget(id, lookups uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[id]
	if n == nil {
		return
	}
	n.lookups -= min(n.lookups, lookups)
	f.forgotten(n)
}

// named is what a name means before it is changed: whether it must keep its
// place, and the node, if the guest knows it, which the caller lets go of with
// place, remove or drop.
type named struct {
	fs     *FS
	pinned bool
	node   *node
}

func (f *FS) named(dir *node, name string) named {
	var st unix.Stat_t
	if unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return named{fs: f}
	}
	w := named{fs: f, pinned: f.pinned[identity(&st)]}
	f.mu.Lock()
	known := f.byFile[identity(&st)]
	f.mu.Unlock()
	if known != nil {
		if n, status := f.node(known.id); status.Ok() {
			w.node = n
		}
	}
	return w
}

// place says that the file has got another name.
func (w named) place(dir *node, name string) {
	if w.node == nil {
		return
	}
	w.fs.mu.Lock()
	w.node.parent, w.node.name, w.node.gone = dir.id, name, false
	w.fs.mu.Unlock()
}

// remove says that the file has lost a name.
func (w named) remove(dir *node, name string) {
	if w.node == nil {
		return
	}
	w.fs.mu.Lock()
	w.node.gone = w.node.gone || w.node.parent == dir.id && w.node.name == name
	w.fs.mu.Unlock()
}

func (w named) drop() {
	if w.node != nil {
		w.fs.release(w.node)
	}
}
