package image

import (
	"context"
	"sync"
)

// keyedMutex locks by name, so that two pulls of one blob do the work once. It
// implements containerd's unpack.KeyedLocker.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	users int           // holder and waiters, guarded by keyedMutex.mu
	token chan struct{} // holds one token while unlocked
}

func newKeyedMutex() *keyedMutex {
	return &keyedMutex{locks: map[string]*keyLock{}}
}

// Lock waits for the key until ctx ends.
func (m *keyedMutex) Lock(ctx context.Context, key string) error {
	m.mu.Lock()
	l, ok := m.locks[key]
	if !ok {
		l = &keyLock{token: make(chan struct{}, 1)}
		l.token <- struct{}{}
		m.locks[key] = l
	}
	l.users++
	m.mu.Unlock()
	select {
	case <-l.token:
		return nil
	case <-ctx.Done():
		m.leave(key, l)
		return context.Cause(ctx)
	}
}

// Unlock gives the key to the next who waits.
func (m *keyedMutex) Unlock(key string) {
	m.mu.Lock()
	l := m.locks[key]
	m.mu.Unlock()
	l.token <- struct{}{}
	m.leave(key, l)
}

func (m *keyedMutex) leave(key string, l *keyLock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.users--
	if l.users == 0 {
		delete(m.locks, key)
	}
}
