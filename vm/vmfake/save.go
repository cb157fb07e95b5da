package vmfake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrState is what Restore fails with when the file does not hold a guest that the
// same Driver has saved.
var ErrState = errors.New("no saved guest")

// Save implements vm.Saver. The guest goes on all the while, without a machine: it
// finds all its streams broken and dials nobody. The file holds but its name.
func (m *Machine) Save(ctx context.Context, path string) error {
	if err := m.life.Up(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.opts.SaveErr != nil {
		return m.opts.SaveErr
	}
	name := rand.Text()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.WriteString(name)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	s := m.supply
	m.supply = nil
	m.mu.Unlock()
	// Its listeners wait on a bus that nobody dials on.
	s.held = newBus()
	s.held.adopt(m.bus)
	m.driver.mu.Lock()
	m.driver.saved[name] = s
	m.driver.mu.Unlock()
	m.end(nil)
	return nil
}

// Restore implements vm.Saver.
func (m *Machine) Restore(ctx context.Context, path string) error {
	return m.begin(ctx, func() (*supply, error) {
		name, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		m.driver.mu.Lock()
		s := m.driver.saved[string(name)]
		delete(m.driver.saved, string(name))
		m.driver.mu.Unlock()
		if s == nil {
			return nil, fmt.Errorf("%w in %s", ErrState, path)
		}
		m.bus.adopt(s.held)
		s.machine.Store(m)
		return s, nil
	})
}

// Discard ends the guests that were saved and not restored.
func (d *Driver) Discard() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, s := range d.saved {
		s.pull()
		s.held.close()
		<-s.off
		delete(d.saved, name)
	}
}
