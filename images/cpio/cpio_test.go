package cpio

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
)

type entry struct {
	name, body string
	mode       uint64
}

// read parses a newc archive independently of the writer.
func read(t *testing.T, archive []byte) []entry {
	t.Helper()
	if len(archive)%4 != 0 {
		t.Errorf("%d bytes are no multiple of 4", len(archive))
	}
	var entries []entry
	for {
		if string(archive[:6]) != "070701" {
			t.Fatalf("no magic number: %q", archive[:6])
		}
		field := func(i int) uint64 {
			v, err := strconv.ParseUint(string(archive[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(archive[110 : 110+nameSize-1])
		start := (110 + nameSize + 3) &^ 3
		body := string(archive[start : start+size])
		archive = archive[(start+size+3)&^3:]
		if name == "TRAILER!!!" {
			if len(archive) > 0 {
				t.Errorf("%d bytes after the trailer", len(archive))
			}
			return entries
		}
		entries = append(entries, entry{name, body, mode})
	}
}

func write(t *testing.T) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := NewWriter(&archive)
	for _, err := range []error{
		w.Dir("bin"), w.File("bin/a", 0o755, []byte("abcde")), w.Symlink("bin/b", "a"), w.File("empty", 0o600, nil),
		w.Add(Header{Name: "console", Mode: TypeChar | 0o600, Major: 5, Minor: 1}, nil), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return archive.Bytes()
}

func TestArchive(t *testing.T) {
	want := []entry{
		{"bin", "", 0o040755}, {"bin/a", "abcde", 0o100755}, {"bin/b", "a", 0o120777}, {"empty", "", 0o100600}, {"console", "", 0o020600},
	}
	got := read(t, write(t))
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("entry %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

func TestReproducible(t *testing.T) {
	if !bytes.Equal(write(t), write(t)) {
		t.Error("the same calls gave different bytes")
	}
}

func TestInvalidNames(t *testing.T) {
	for _, name := range []string{"", "/bin", "./bin", "bin/", "a//b", "a/../b"} {
		if err := NewWriter(&strings.Builder{}).Dir(name); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}
