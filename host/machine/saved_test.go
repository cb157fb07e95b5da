package machine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSaved uses a saved state once, and not at all when it belongs to something else.
func TestSaved(t *testing.T) {
	home, err := Locate(func(string) string { return t.TempDir() })
	if err != nil {
		t.Fatal(err)
	}
	m, err := home.Machine("default")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PrepareDisk(1<<20, nil); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(m.DataDir, "data.img")
	damage := func(body string) func() {
		return func() { os.WriteFile(m.savedRecord(), []byte(body), 0o600) }
	}
	for name, test := range map[string]struct {
		meddle      func()
		fingerprint string
		fails       bool
	}{
		"untouched":          {func() {}, "a", false},
		"another machine":    {func() {}, "b", true},
		"a disk written to":  {func() { os.Chtimes(disk, time.Now(), time.Now().Add(time.Second)) }, "a", true},
		"a disk grown":       {func() { os.Truncate(disk, 2<<20) }, "a", true},
		"no disk":            {func() { os.Rename(disk, disk+"x"); os.Remove(disk + "x") }, "a", true},
		"no JSON":            {damage("{"), "a", true},
		"of a newer version": {damage(`{"format":2,"machine":"a"}`), "a", true},
		"not there":          {func() { m.DropSaved() }, "a", true},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := m.PrepareDisk(2<<20, nil); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(disk, 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(m.SavedFile(), []byte("state"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.RecordSaved("a"); err != nil {
				t.Fatal(err)
			}
			if m.Saved().IsZero() || m.LastState().Saved.IsZero() {
				t.Error("nothing is saved")
			}
			test.meddle()
			err := m.TakeSaved(test.fingerprint)
			if (err != nil) != test.fails || errors.Is(err, ErrNoSaved) != (name == "not there") {
				t.Errorf("TakeSaved() = %v", err)
			}
			if err == nil {
				if err := m.TakeSaved("a"); !errors.Is(err, ErrNoSaved) {
					t.Errorf("the second TakeSaved() = %v", err)
				}
			}
			if err := m.DropSaved(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(m.SavedFile()); err == nil || !m.Saved().IsZero() {
				t.Error("DropSaved leaves a state")
			}
		})
	}
}
