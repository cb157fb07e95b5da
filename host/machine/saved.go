package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// saved is the record of a saved state. The state is good for one use, and only as
// long as the machine and its disk are what they were.
type saved struct {
	Format  int       `json:"format"`
	When    time.Time `json:"when"`
	Machine string    `json:"machine"` // a fingerprint of all that the state belongs to
	Disk    []mark    `json:"disk"`
}

const savedFormat = 1

// mark tells whether a file was written to.
type mark struct {
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// ErrNoSaved is returned when no state of the machine is saved.
var ErrNoSaved = errors.New("no state is saved")

// SavedFile is where the driver puts the machine's state.
func (m Machine) SavedFile() string { return filepath.Join(m.DataDir, "saved.state") }

func (m Machine) savedRecord() string { return filepath.Join(m.DataDir, "saved.json") }

// Saved is when the machine's state was saved; zero when there is none.
func (m Machine) Saved() time.Time {
	r, err := m.readSaved()
	if err != nil {
		return time.Time{}
	}
	return r.When
}

func (m Machine) readSaved() (saved, error) {
	var r saved
	body, err := os.ReadFile(m.savedRecord())
	if errors.Is(err, fs.ErrNotExist) {
		return r, ErrNoSaved
	}
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err == nil && r.Format != savedFormat {
		err = fmt.Errorf("it was saved by another version of Berth")
	}
	if err != nil {
		return r, fmt.Errorf("cannot read %s: %w", m.savedRecord(), err)
	}
	return r, nil
}

// RecordSaved says that SavedFile is whole, and belongs to the machine with the
// fingerprint and to the data disk as it is now.
func (m Machine) RecordSaved(fingerprint string) error {
	marks, err := m.marks()
	if err != nil {
		return err
	}
	body, err := json.Marshal(saved{Format: savedFormat, When: time.Now().UTC(), Machine: fingerprint, Disk: marks})
	if err != nil {
		return err
	}
	return WriteFile(m.savedRecord(), body, 0o600)
}

// TakeSaved takes the record away, for good, and says whether SavedFile may be used:
// nil, ErrNoSaved, or why it belongs to something else.
func (m Machine) TakeSaved(fingerprint string) error {
	r, err := m.readSaved()
	if err != nil {
		return err
	}
	// From here on the disk may change under the state.
	if err := os.Remove(m.savedRecord()); err != nil {
		return err
	}
	if err := syncDir(m.DataDir); err != nil {
		return err
	}
	marks, err := m.marks()
	switch {
	case err != nil:
		return err
	case r.Machine != fingerprint:
		return errors.New("Berth, its hypervisor or the machine's configuration has changed since")
	case !sameMarks(r.Disk, marks):
		return errors.New("the data disk has changed since")
	}
	return nil
}

// DropSaved removes the saved state, if there is one.
func (m Machine) DropSaved() error {
	return errors.Join(removeFile(m.savedRecord()), removeFile(m.SavedFile()))
}

func (m Machine) marks() ([]mark, error) {
	var marks []mark
	for _, name := range m.disks() {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		marks = append(marks, mark{info.Size(), info.ModTime().UTC()})
	}
	return marks, nil
}

func sameMarks(a, b []mark) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Size != b[i].Size || !a[i].Modified.Equal(b[i].Modified) {
			return false
		}
	}
	return true
}
