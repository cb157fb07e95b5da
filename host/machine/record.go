package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// recordVersion is the version of everything in a machine's data directory. A
// higher one was written by a newer Berth, which may have changed what the data
// means: such a machine is not touched.
const recordVersion = 1

type record struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

// Exists reports whether the machine has been created.
func (m Machine) Exists() bool {
	_, err := os.Stat(m.recordFile())
	return err == nil
}

// Create makes the machine, unless it exists: its directories, its keys, a
// configuration that explains itself, and last the record by which it exists.
// What is there already stays, so that creating again completes what was cut
// short. Only one process at a time creates it; others wait.
func (m Machine) Create(ctx context.Context) error {
	if m.Exists() {
		return m.checkRecord()
	}
	lock, err := WaitLock(ctx, m.StartLock())
	if err == nil {
		defer lock.Unlock()
		if m.Exists() {
			return m.checkRecord()
		}
		err = m.create()
	}
	if err != nil {
		return fmt.Errorf("cannot create machine %q: %w", m.Name, err)
	}
	return nil
}

func (m Machine) create() error {
	for _, dir := range []string{m.DataDir, m.StateDir, filepath.Dir(m.ConfigFile)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(m.ConfigFile); errors.Is(err, fs.ErrNotExist) {
		if err := WriteFile(m.ConfigFile, []byte(defaultConfig), 0o600); err != nil {
			return err
		}
	}
	if _, err := m.Keys(); err != nil {
		return err
	}
	body, err := json.Marshal(record{Version: recordVersion, Created: time.Now().UTC()})
	if err != nil {
		return err
	}
	return WriteFile(m.recordFile(), body, 0o600)
}

func (m Machine) checkRecord() error {
	body, err := os.ReadFile(m.recordFile())
	if err != nil {
		return fmt.Errorf("cannot read machine %q: %w", m.Name, err)
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		// Only the version matters, and a file that never held a higher one
		// cannot be a newer Berth's: its writes are whole.
		return fmt.Errorf("%w: machine %q: %s is damaged: restore it, or write {\"version\":1} into it if the disk %s is good",
			ErrAtRisk, m.Name, m.recordFile(), filepath.Join(m.DataDir, diskName+".*"))
	}
	if r.Version > recordVersion {
		return fmt.Errorf("%w: machine %q was used by a newer Berth (data version %d, this one knows %d): use that one",
			ErrAtRisk, m.Name, r.Version, recordVersion)
	}
	return nil
}

// Delete removes everything there is of the machine, which must not be running:
// the caller holds the start lock. The record goes first, so that a deletion cut
// short leaves no machine.
func (m Machine) Delete() error {
	err := os.Remove(m.recordFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot delete machine %q: %w", m.Name, err)
	}
	err = errors.Join(os.RemoveAll(m.DataDir), os.RemoveAll(m.SocketDir), removeFile(m.ConfigFile), os.RemoveAll(m.StateDir))
	if err != nil {
		return fmt.Errorf("cannot delete all of machine %q: %w", m.Name, err)
	}
	// Directories that are empty now are nobody's; others stay.
	os.Remove(filepath.Dir(m.SocketDir))
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveTemporary deletes what writes that were killed have left. The caller
// holds the daemon lock.
func (m Machine) RemoveTemporary() error {
	return errors.Join(removeTemporary(m.DataDir), removeTemporary(m.StateDir))
}

// minFree is what must be free on the host's disk for a start, in bytes: enough
// for the guest's journal, so that its file system never meets a full disk
// before the user has heard about it.
const minFree = 256 << 20

// CheckSpace refuses to run a machine whose next write could fail. It also works
// for a machine that does not exist yet.
func (m Machine) CheckSpace() error {
	dir := m.DataDir
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	free, err := FreeBytes(dir)
	if err != nil {
		return err
	}
	if free < minFree {
		return fmt.Errorf("%w: the host's disk is full: %s of space left for %s, at least %s are needed: free some",
			ErrAtRisk, Size(free), m.DataDir, Size(minFree))
	}
	return nil
}
