package logfile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	line := strings.Repeat("x", 1023) + "\n"
	for range 7 * MaxBytes / len(line) {
		l.Write([]byte(line))
	}
	files, _ := filepath.Glob(path + "*")
	if len(files) != MaxFiles {
		t.Errorf("%d files, want %d", len(files), MaxFiles)
	}
	for _, f := range files {
		if info, _ := os.Stat(f); info.Size() > MaxBytes || os.PathSeparator == '/' && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, %v", f, info.Size(), info.Mode())
		}
	}
}

func TestReopenAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for i := range 3 {
		l, err := Open(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(l, i)
		l.Close()
	}
	if body, _ := os.ReadFile(path); string(body) != "0\n1\n2\n" {
		t.Errorf("%q", body)
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	os.WriteFile(path+".1", []byte("1\n2\n3\n"), 0o600)
	os.WriteFile(path, []byte("4\n5"), 0o600)
	for n, want := range map[int]string{-1: "1\n2\n3\n4\n5", 0: "", 1: "5", 2: "4\n5", 3: "3\n4\n5", 99: "1\n2\n3\n4\n5"} {
		var b bytes.Buffer
		if err := Tail(path, n, &b); err != nil || b.String() != want {
			t.Errorf("tail %d: %q, want %q (%v)", n, &b, want, err)
		}
	}
	os.WriteFile(path, []byte("4\n5\n"), 0o600)
	for n, want := range map[int]string{0: "", 1: "5\n", 2: "4\n5\n", 3: "3\n4\n5\n"} {
		var b bytes.Buffer
		if err := Tail(path, n, &b); err != nil || b.String() != want {
			t.Errorf("tail %d: %q, want %q (%v)", n, &b, want, err)
		}
	}
	var b bytes.Buffer
	if err := Tail(filepath.Join(t.TempDir(), "none"), 5, &b); err != nil || b.Len() > 0 {
		t.Errorf("no file: %q, %v", &b, err)
	}
}

// TestRate: what is too fast is dropped and counted.
func TestRate(t *testing.T) {
	l := limiter{perSecond: 1000, tokens: 100, last: time.Unix(0, 0)}
	now := time.Unix(0, 0)
	if _, ok := l.take(100, now); !ok {
		t.Error("the burst was refused")
	}
	if _, ok := l.take(7, now); ok {
		t.Error("there was nothing left")
	}
	if dropped, ok := l.take(50, now.Add(100*time.Millisecond)); !ok || dropped != 7 {
		t.Errorf("after a pause: %v, %d dropped", ok, dropped)
	}
	if l.take(0, now.Add(time.Hour)); l.tokens > MaxBytes {
		t.Error("an idle hour saves up more than one burst")
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(l, "past")
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- l.Follow(context.Background(), -1, w)
		w.Close()
	}()
	buf := make([]byte, 100)
	n, _ := r.Read(buf)
	if string(buf[:n]) != "past\n" {
		t.Fatalf("%q", buf[:n])
	}
	fmt.Fprintln(l, "present")
	if n, _ = r.Read(buf); string(buf[:n]) != "present\n" {
		t.Fatalf("%q", buf[:n])
	}
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSlowFollower: a reader that does not read blocks nobody.
func TestSlowFollower(t *testing.T) {
	l, err := Open(filepath.Join(t.TempDir(), "log"), 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Follow(ctx, 0, w)
	}()
	for range 1000 {
		fmt.Fprintln(l, "line")
	}
	cancel()
	r.Close()
	<-done
	l.Close()
}
