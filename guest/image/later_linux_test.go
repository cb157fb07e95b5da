package image

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestLater: what waits is written with the next change, before it, once and in order,
// also when a change between fails.
func TestLater(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p := &patient{DB: db}
	bucket := []byte("bucket")
	put := func(key string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			n, err := b.NextSequence()
			if err != nil {
				return err
			}
			return b.Put([]byte{byte(n)}, []byte(key))
		}
	}
	written := func() (list []string) {
		_ = p.View(func(tx *bolt.Tx) error {
			if b := tx.Bucket(bucket); b != nil {
				return b.ForEach(func(_, v []byte) error { list = append(list, string(v)); return nil })
			}
			return nil
		})
		return list
	}
	want := func(list ...string) {
		t.Helper()
		if got := written(); !slices.Equal(got, list) {
			t.Errorf("written is %q, want %q", got, list)
		}
	}
	p.later(put("first"))
	p.later(put("second"))
	want()
	broken := errors.New("broken")
	if err := p.Update(func(*bolt.Tx) error { p.later(put("third")); return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	want()
	if err := p.Update(put("own")); err != nil {
		t.Fatal(err)
	}
	want("first", "second", "third", "own")
	p.later(put("fourth"))
	p.later(func(*bolt.Tx) error { return broken })
	if err := p.Update(put("lost")); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := p.Update(put("last")); err != nil {
		t.Fatal(err)
	}
	want("first", "second", "third", "own", "fourth", "last")
}
