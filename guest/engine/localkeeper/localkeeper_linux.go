package localkeeper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/keeper"
)

// Keeper holds entries in memory. Its methods are safe for concurrent use.
type Keeper struct {
	exits chan keeper.Exit
	done  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	entries map[string]keeper.Entry
	pidfds  map[string]*os.File
	closed  bool
}

// New returns an empty keeper. Close it.
func New() *Keeper {
	return &Keeper{exits: make(chan keeper.Exit), done: make(chan struct{}), entries: map[string]keeper.Entry{},
		pidfds: map[string]*os.File{}}
}

// Put implements the keeper's Put.
func (k *Keeper) Put(key string, record []byte, files ...*os.File) error {
	var dups []*os.File
	for _, f := range files {
		d, err := dup(f)
		if err != nil {
			closeAll(dups)
			return fmt.Errorf("keep %s: %w", key, err)
		}
		dups = append(dups, d)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.entries[key]
	closeAll(old.Files)
	k.entries[key] = keeper.Entry{Key: key, Record: slices.Clone(record), Files: dups, Process: old.Process}
	return nil
}

// Get implements the keeper's Get.
func (k *Keeper) Get(key string) (keeper.Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.entries[key]
	if !ok {
		return e, keeper.ErrNotFound
	}
	var dups []*os.File
	for _, f := range e.Files {
		d, err := dup(f)
		if err != nil {
			closeAll(dups)
			return keeper.Entry{}, err
		}
		dups = append(dups, d)
	}
	e.Files = dups
	return e, nil
}

// List implements the keeper's List.
func (k *Keeper) List() ([]keeper.Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []keeper.Entry
	for _, e := range k.entries {
		e.Files = nil
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b keeper.Entry) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}

// Delete implements the keeper's Delete.
func (k *Keeper) Delete(key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.entries[key]
	if !ok {
		return keeper.ErrNotFound
	}
	closeAll(e.Files)
	delete(k.entries, key)
	return nil
}

// Adopt implements the keeper's Adopt. The process must be a child of this one;
// the keeper reaps it.
func (k *Keeper) Adopt(key string, pid int, pidfd *os.File) error {
	fd, err := dup(pidfd)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.entries[key]
	if !ok || k.closed {
		fd.Close()
		return keeper.ErrNotFound
	}
	e.Process = &keeper.Process{PID: pid}
	k.entries[key] = e
	k.pidfds[key] = fd
	k.wg.Go(func() { k.wait(key, pid, fd) })
	return nil
}

// wait waits in the poller for the process to end, and reaps it.
func (k *Keeper) wait(key string, pid int, fd *os.File) {
	defer fd.Close()
	raw, err := fd.SyscallConn()
	if err != nil {
		return
	}
	var status unix.WaitStatus
	err = raw.Read(func(uintptr) bool {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		return err != nil && err != unix.EINTR || got == pid
	})
	if err != nil {
		return
	}
	exit := keeper.Exit{Key: key, Process: keeper.Process{PID: pid, Exited: true, Status: syscall.WaitStatus(status), At: time.Now()}}
	k.mu.Lock()
	if e, ok := k.entries[key]; ok && e.Process != nil && e.Process.PID == pid {
		p := exit.Process
		e.Process = &p
		k.entries[key] = e
	}
	if k.pidfds[key] == fd {
		delete(k.pidfds, key)
	}
	k.mu.Unlock()
	select {
	case k.exits <- exit:
	case <-k.done:
	}
}

// Exits implements the keeper's Exits.
func (k *Keeper) Exits() <-chan keeper.Exit { return k.exits }

// Close forgets everything. Processes go on, unwatched.
func (k *Keeper) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	close(k.done)
	for _, e := range k.entries {
		closeAll(e.Files)
	}
	for _, fd := range k.pidfds {
		_ = fd.SetReadDeadline(time.Now())
	}
	k.mu.Unlock()
	k.wg.Wait()
	close(k.exits)
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// dup returns another descriptor of the file, which the poller can wait for where
// the kernel knows how.
func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := raw.Control(func(old uintptr) {
		if fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); derr == nil {
			_ = unix.SetNonblock(fd, true)
		}
	}); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
