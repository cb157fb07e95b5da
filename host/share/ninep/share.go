package ninep

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
)

// Options say how a folder is shared.
type Options struct {
	ReadOnly bool // refuses every change with EROFS
	// Hidden are absolute paths that the guest must not see, whether or not they
	// lie in the folder. The folders that lead to them can be neither moved nor
	// removed.
	Hidden []string
	// Files is how many files the guest may have at hand, about; 0 for a modest
	// number. What it wants beyond that fails with ENFILE.
	Files int
	Log   *slog.Logger // nil for none
}

// Share is a folder to serve. Its methods are safe for concurrent use.
type Share struct {
	opts Options
	root *os.Root
	self os.FileInfo
	log  *slog.Logger

	hidden []place
	secret []os.FileInfo // what hidden names, where it is there
	pinned []os.FileInfo // what leads there
	files  atomic.Int64  // that guests have at hand

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]struct{}
	closed bool
}

// place is a name in a folder.
type place struct {
	dir  os.FileInfo
	name string
}

// New opens the folder. The caller closes the Share.
func New(folder string, o Options) (*Share, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Files == 0 {
		o.Files = 4096
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("cannot share %s: %w", folder, err)
	}
	self, err := root.Stat(".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("cannot share %s: %w", folder, err)
	}
	s := &Share{opts: o, root: root, self: self, log: o.Log, conns: map[net.Conn]struct{}{}}
	for _, p := range o.Hidden {
		s.hide(p)
	}
	return s, nil
}

// hide makes p not exist for the guest, by its place and, if it is there, by its
// identity. A guest that could move what leads there would put something else in
// p's place, for the host to believe.
func (s *Share) hide(p string) {
	names := []string{p}
	if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
		names = append(names, filepath.Join(real, filepath.Base(p)))
		if st, err := os.Stat(real); err == nil {
			s.hidden = append(s.hidden, place{st, filepath.Base(p)})
		}
	}
	for _, name := range names {
		for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
			if st, err := os.Lstat(dir); err == nil {
				s.pinned = append(s.pinned, st)
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	if st, err := os.Stat(p); err == nil {
		s.secret = append(s.secret, st)
	}
}

// isHidden tells whether a name in a folder, or the file st, if there is one, does
// not exist for the guest.
func (s *Share) isHidden(dir os.FileInfo, name string, st os.FileInfo) bool {
	for _, h := range s.hidden {
		if sameName(h.name, name) && os.SameFile(h.dir, dir) {
			return true
		}
	}
	return st != nil && among(s.secret, st)
}

func among(all []os.FileInfo, st os.FileInfo) bool {
	for _, other := range all {
		if os.SameFile(other, st) {
			return true
		}
	}
	return false
}

// Serve serves one guest until conn ends or the Share is closed. It closes conn.
func (s *Share) Serve(conn net.Conn) error {
	defer conn.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}()
	g := newGate(conn)
	defer g.Close()
	return p9.NewServer(attacher{s, g}).Handle(g, g)
}

// Close ends the sharing and all guests' connections.
func (s *Share) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	return s.root.Close()
}

// attacher makes the root for a user of the guest.
type attacher struct {
	share *Share
	gate  *gate
}

// Attach implements p9.Attacher.
func (a attacher) Attach() (p9.File, error) {
	user := a.gate.attached()
	root, err := a.share.root.OpenRoot(".")
	if err != nil {
		return nil, err
	}
	return a.share.newFile(&file{share: a.share, user: user, dir: newFolder(root, a.share.self)})
}

// newFile counts a file that the guest gets at hand. It takes over what f holds.
func (s *Share) newFile(f *file) (*file, error) {
	if s.files.Add(1) > int64(s.opts.Files) {
		f.Close()
		return nil, linux.ENFILE
	}
	return f, nil
}
