//go:build unix

package forward

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListenMode(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "d.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if got := l.Addr().String(); got != path {
		t.Errorf("Addr: %s", got)
	}
	l.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left after Close: %v, %v", left, err)
	}
}

func TestListenReplacesDeadSocketOnly(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "d.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close() // as after kill -9
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("a file was replaced")
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("a file was changed")
	}
	// Closing leaves another's socket alone.
	os.Remove(path)
	other, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Error("Close removed the socket of another listener")
	}
}

func TestListenLongPath(t *testing.T) {
	path := filepath.Join(shortDir(t), strings.Repeat("x", 100))
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "BERTH_HOME") {
		t.Errorf("%v", err)
	}
	if _, err := Listen("/nonexistent/dir/x.sock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
