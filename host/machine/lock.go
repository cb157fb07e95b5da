package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrLocked is returned by TryLock when somebody else holds the lock.
var ErrLocked = errors.New("locked by another process")

// Lock is a lock between processes. The kernel drops it when its holder dies,
// so a lock whose owner is dead is no lock and there is nothing to clean up.
type Lock struct{ f *os.File }

// TryLock takes the lock at path, or fails with ErrLocked at once.
func TryLock(path string) (*Lock, error) {
	for {
		f, err := openLock(path)
		if err != nil {
			return nil, err
		}
		ok, err := lockFile(f)
		if err == nil && !ok {
			err = ErrLocked
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		if current(f, path) {
			return &Lock{f}, nil
		}
		f.Close()
	}
}

// WaitLock takes the lock at path, and waits for whoever holds it until ctx ends.
func WaitLock(ctx context.Context, path string) (*Lock, error) {
	for {
		f, err := openLock(path)
		if err != nil {
			return nil, err
		}
		if err := waitFor(ctx, f); err != nil {
			return nil, err
		}
		if current(f, path) {
			return &Lock{f}, nil
		}
		f.Close()
	}
}

// waitFor locks f or closes it. A wait that is given up on goes on in its
// goroutine, which frees the lock as soon as it gets it: the kernel has no wait
// that a context could end.
func waitFor(ctx context.Context, f *os.File) error {
	got := make(chan error, 1)
	go func() { got <- lockFileWait(f) }()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return ctx.Err()
	}
}

// Unlock gives the lock back.
func (l *Lock) Unlock() error { return l.f.Close() }

// Locked reports whether somebody holds the lock at path, without waiting.
// A lock that cannot be looked at counts as free.
func Locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	free, err := lockFile(f)
	return err == nil && !free
}

func openLock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the state directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %w", err)
	}
	return f, nil
}

// current tells a lock file from one that was deleted, with its machine, while
// we waited for it.
func current(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
