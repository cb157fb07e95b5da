package share

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say how a folder is shared.
type Options struct {
	// ReadOnly refuses every change with EROFS.
	ReadOnly bool
	// Hidden are absolute paths that the guest must not see, whether or not they
	// lie in the folder. The folders that lead to them can be neither moved nor
	// removed.
	Hidden []string
	// Descriptors is how many the FS may hold, about; 0 for a modest number. Files
	// beyond that are opened anew when the guest comes back to them, and what it
	// opens itself fails with ENFILE.
	Descriptors int
	Log         *slog.Logger // nil for none
}

// FS serves one folder. Its methods are safe for concurrent use.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	opts    Options
	rootDev uint64

	// life is held for reading by each request and for writing by Reset and
	// Close, which so find nobody at work.
	life   sync.RWMutex
	server *fuse.ProtocolServer // nil after Close

	mu      sync.Mutex // guards what follows
	nodes   map[uint64]*node
	byFile  map[file]*node
	handles map[uint64]*handle
	devs    map[uint64]uint64 // small numbers for devices other than rootDev
	nextID  uint64
	hidden  map[entry]bool
	secret  map[file]bool
	pinned  map[file]bool // what leads to them
	rootFD  int

	open        *list.List // of the nodes that have a descriptor, the least used last
	mostNodes   int        // in open, but for a moment and for what cannot be opened again
	mostHandles int
}

// file is a file's identity on the host.
type file struct{ dev, ino uint64 }

// entry is a name in a folder.
type entry struct {
	dir  file
	name string
}

// handle is an open file or folder. Its descriptor is closed when the guest has
// released it and no request uses it any more: a descriptor that was closed under
// a request could by then be another file's.
type handle struct {
	fd  int
	dir *dirStream // folders only

	released bool // by the guest; guarded by FS.mu
	uses     int  // requests in flight; guarded by FS.mu
}

// New opens the folder. The caller closes the FS.
func New(folder string, o Options) (*FS, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot share %s: %w", folder, err)
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          o,
		devs:          map[uint64]uint64{},
		hidden:        map[entry]bool{},
		secret:        map[file]bool{},
		pinned:        map[file]bool{},
		rootFD:        fd,
		open:          list.New(),
	}
	if o.Descriptors == 0 {
		o.Descriptors = 4096
	}
	f.mostNodes, f.mostHandles = max(o.Descriptors/2, 8), max(o.Descriptors/2, 8)
	for _, p := range o.Hidden {
		f.hide(p)
	}
	if err := f.begin(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot share %s: %w", folder, err)
	}
	return f, nil
}

// hide makes p not exist for the guest, by its place and, if it is there, by its
// identity. The folders and links that lead there are pinned: a guest that could
// move one would put something else in p's place, for the host to believe.
func (f *FS) hide(p string) {
	var st unix.Stat_t
	for _, name := range []string{p, resolved(p)} {
		for dir := filepath.Dir(name); unix.Lstat(dir, &st) == nil; dir = filepath.Dir(dir) {
			f.pinned[identity(&st)] = true
			if dir == "/" {
				break
			}
		}
	}
	if unix.Stat(p, &st) == nil {
		f.secret[identity(&st)] = true
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil && unix.Stat(real, &st) == nil {
		f.hidden[entry{identity(&st), filepath.Base(p)}] = true
	}
}

// resolved is p without the links that lead there.
func resolved(p string) string {
	if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
		return filepath.Join(real, filepath.Base(p))
	}
	return p
}

// begin starts a session: the guest knows the root and nothing else.
func (f *FS) begin() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.rootFD, &st); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(f.rootFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.rootDev = st.Dev
	root := &node{id: fuse.FUSE_ROOT_ID, fd: fd, file: identity(&st), kind: st.Mode & unix.S_IFMT, lookups: 1}
	root.open = f.open.PushFront(root)
	f.nodes = map[uint64]*node{root.id: root}
	f.byFile = map[file]*node{root.file: root}
	f.handles = map[uint64]*handle{}
	f.nextID = root.id
	f.server = fuse.NewProtocolServer(f, f.mountOptions())
	return nil
}

// mountOptions are what the guest's kernel is told of the FS.
func (f *FS) mountOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		FsName:       "berth",
		MaxWrite:     1 << 20,
		MaxReadAhead: 1 << 20,
		// Else the guest's kernel asks before each write for an attribute that might
		// have to go with it.
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2,
		Logger:            slog.NewLogLogger(f.opts.Log.Handler(), slog.LevelDebug),
		PanicHandler:      f.panicked,
	}
}

func (f *FS) panicked(r any) fuse.Status {
	f.opts.Log.Error("a request on a shared folder failed unexpectedly", "error", fmt.Sprint(r))
	return fuse.EIO
}

// HandleRequest implements vm.ShareServer. in is the request and stays the
// caller's; the reply is written to out. It returns the reply's length, 0 when
// there is none. The memory must be private: a guest that changed it meanwhile
// would be believed.
func (f *FS) HandleRequest(in, out [][]byte) int {
	f.life.RLock()
	defer f.life.RUnlock()
	if f.server == nil {
		return 0
	}
	n, status := f.server.HandleRequest(in, out)
	if !status.Ok() {
		f.opts.Log.Warn("the guest sent a malformed request to a shared folder", "status", status)
		return 0
	}
	return n
}

// Reset forgets what the guest knew and closes what it had open: it has been
// restarted.
func (f *FS) Reset() error {
	f.life.Lock()
	defer f.life.Unlock()
	if f.server == nil {
		return os.ErrClosed
	}
	f.drop()
	return f.begin()
}

// Close ends the sharing. Requests fail afterwards.
func (f *FS) Close() error {
	f.life.Lock()
	defer f.life.Unlock()
	if f.server == nil {
		return nil
	}
	f.drop()
	f.server = nil
	return unix.Close(f.rootFD)
}

// drop closes all descriptors but the root's. Nobody is at work.
func (f *FS) drop() {
	for _, h := range f.handles {
		unix.Close(h.fd)
	}
	for _, n := range f.nodes {
		if n.fd >= 0 {
			unix.Close(n.fd)
		}
	}
	f.handles, f.nodes, f.byFile = nil, nil, nil
	f.open.Init()
}

func identity(st *unix.Stat_t) file { return file{st.Dev, st.Ino} }

// String names the filesystem in go-fuse's messages.
func (f *FS) String() string { return "berth" }

// dir is node, for a folder in which name is to be looked at or changed.
func (f *FS) dir(id uint64, name string) (*node, fuse.Status) {
	if status := checkName(name); !status.Ok() {
		return nil, status
	}
	n, status := f.node(id)
	if status.Ok() && n.kind != unix.S_IFDIR {
		f.release(n)
		return nil, fuse.ENOTDIR
	}
	return n, status
}

// checkName refuses what is not one name.
func checkName(name string) fuse.Status {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fuse.EINVAL
	case len(name) > unix.NAME_MAX:
		return fuse.Status(unix.ENAMETOOLONG)
	}
	return fuse.OK
}

// Lookup finds name in a folder.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.dir(h.NodeId, name)
	if !status.Ok() {
		return status
	}
	defer f.release(dir)
	return f.lookup(dir, name, &h.Caller, out)
}

// lookup makes the guest know name in dir.
func (f *FS) lookup(dir *node, name string, who *fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if f.isHidden(dir, name) {
		return fuse.ENOENT
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return errno(err)
	}
	if f.secret[identity(&st)] {
		unix.Close(fd)
		return fuse.ENOENT
	}
	n, status := f.know(dir, name, fd, &st)
	if !status.Ok() {
		return status
	}
	defer f.release(n) // the guest may forget it before it has heard of it
	f.fill(n, &st, who, &out.Attr)
	out.NodeId = n.id
	out.Generation = 1
	out.SetEntryTimeout(Validity)
	out.SetAttrTimeout(Validity)
	return fuse.OK
}

func (f *FS) isHidden(dir *node, name string) bool { return f.hidden[entry{dir.file, name}] }

// errno is the status of a system call's error.
func errno(err error) fuse.Status {
	var e unix.Errno
	if errors.As(err, &e) {
		if e == unix.EMFILE {
			e = unix.ENFILE
		}
		return fuse.Status(e)
	}
	return fuse.EIO
}

// path is a name for a descriptor that system calls without a descriptor take.
// It leads to the file itself, wherever it has been moved, and ends there: a
// symbolic link is not followed on.
func path(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// writable says whether the guest may change anything.
func (f *FS) writable() fuse.Status {
	if f.opts.ReadOnly {
		return fuse.EROFS
	}
	return fuse.OK
}
