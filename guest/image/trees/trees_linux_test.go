package trees

import (
	"os"
	"path/filepath"
	"testing"
)

// place is a directory of snapshots with its trees.
type place struct {
	*Trees
	t *testing.T
}

func newPlace(t *testing.T) place {
	dir := t.TempDir()
	p := place{New(filepath.Join(dir, "a", "snapshots"), filepath.Join(dir, "trees")), t}
	if err := os.MkdirAll(p.snapshots, 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// snapshot makes a snapshot's directory, with a file if text is not empty.
func (p place) snapshot(name, text string) {
	p.t.Helper()
	err := os.MkdirAll(filepath.Join(p.snapshots, name, "fs"), 0o700)
	if err == nil && text != "" {
		err = os.WriteFile(filepath.Join(p.snapshots, name, "fs", "file"), []byte(text), 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p place) ok(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// holds checks what a snapshot's file says; "" is no file.
func (p place) holds(name, want string) {
	p.t.Helper()
	got, err := os.ReadFile(filepath.Join(p.snapshots, name, "fs", "file"))
	if string(got) != want || (err == nil) != (want != "") {
		p.t.Errorf("snapshot %s holds %q, %v, want %q", name, got, err, want)
	}
}

func (p place) trees(want int) {
	p.t.Helper()
	all, err := os.ReadDir(p.dir)
	if err != nil && !os.IsNotExist(err) || len(all) != want {
		p.t.Errorf("%d trees, %v, want %d", len(all), err, want)
	}
}

// TestShare: the files are there as long as one snapshot has them, whichever goes
// first, and not longer.
func TestShare(t *testing.T) {
	for _, order := range [][]string{{"1", "2", "3"}, {"3", "2", "1"}, {"2", "3", "1"}} {
		p := newPlace(t)
		p.ok(p.Sweep())
		p.snapshot("1", "x")
		before, err := os.Stat(filepath.Join(p.snapshots, "1", "fs", "file"))
		p.ok(err)
		p.snapshot("2", "")
		p.ok(p.Share("1", "2"))
		p.snapshot("3", "")
		p.ok(p.Share("2", "3"))
		p.trees(1)
		for i, gone := range order {
			for _, there := range order[i:] {
				p.holds(there, "x")
				if st, err := os.Stat(filepath.Join(p.snapshots, there, "fs", "file")); err != nil || !os.SameFile(st, before) {
					t.Errorf("%s has another file: %v", there, err)
				}
			}
			p.ok(os.RemoveAll(filepath.Join(p.snapshots, gone))) // as the snapshotter does
			p.ok(p.Sweep())
		}
		p.trees(0)
	}
}

// TestShareUnfinished: a process that ended at any point has lost nothing, and what
// it left goes.
func TestShareUnfinished(t *testing.T) {
	p := newPlace(t)
	p.snapshot("1", "x")
	p.ok(os.MkdirAll(p.dir, 0o700))
	p.ok(p.link("tree", filepath.Join(p.dir, "tree"))) // before the exchange
	p.ok(p.Sweep())
	p.holds("1", "x")
	p.trees(0)
	_, err := p.tree("1") // after it
	p.ok(err)
	p.ok(p.Sweep())
	p.holds("1", "x")
	p.trees(1)
	p.snapshot("2", "")
	p.ok(p.Share("1", "2"))
	p.holds("2", "x")
}

func TestShareErrors(t *testing.T) {
	p := newPlace(t)
	p.snapshot("2", "kept")
	if err := p.Share("1", "2"); err == nil {
		t.Error("a snapshot that is not there was shared")
	}
	p.holds("2", "kept")
	p.ok(p.Sweep())
	p.trees(0)
}
