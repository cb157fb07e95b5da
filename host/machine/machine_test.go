package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/host/api"
)

// testHome is a home in a temporary directory.
func testHome(t *testing.T) Home {
	t.Helper()
	h, err := Locate(func(key string) string {
		if key == EnvHome {
			return t.TempDir()
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func testMachine(t *testing.T, name string) Machine {
	t.Helper()
	m, err := testHome(t).Machine(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNames(t *testing.T) {
	h := testHome(t)
	for name, ok := range map[string]bool{
		"default": true, "a": true, "0-x": true, "": false, "-a": false, "A": false, "a/b": false, "../up": false,
		"a.b": false, "ä": false, strings.Repeat("a", 40): true, strings.Repeat("a", 41): false,
	} {
		if _, err := h.Machine(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSocketPathsAreShort(t *testing.T) {
	m := testMachine(t, strings.Repeat("m", 40))
	for _, addr := range []string{m.APIAddress(), m.DockerAddress(), m.SSHAddress(), m.ControlAddress()} {
		if len(addr) > 100 {
			t.Errorf("%s has %d bytes: macOS takes 103", addr, len(addr))
		}
	}
	for root, own := range map[string]bool{"/home/jane": true, "/home/" + strings.Repeat("j", 80): false} {
		h, err := Locate(func(string) string { return root })
		if err != nil {
			t.Fatal(err)
		}
		m, _ := h.Machine("m")
		if runtime.GOOS != "windows" && (inside(m.SocketDir, root) != own || len(m.VMDir()+"/qmp.sock") > 103) {
			t.Errorf("home %s: sockets in %s", root, m.SocketDir)
		}
	}
	if o := testMachine(t, "other"); o.SocketDir == m.SocketDir {
		t.Error("two machines share their sockets")
	}
}

func TestCreateAndDelete(t *testing.T) {
	h := testHome(t)
	m, _ := h.Machine("work")
	if err := m.Check(); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "work") {
		t.Errorf("Check of a machine that is not there: %v", err)
	}
	for range 2 { // creating again changes nothing
		if err := m.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := h.Names(); err != nil || len(names) != 1 || names[0] != "work" {
		t.Errorf("Names: %v, %v", names, err)
	}
	keys, err := m.Keys()
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Keys()
	if err != nil || keys.HostPEM != again.HostPEM || keys.HostPEM == keys.ClientPEM {
		t.Errorf("keys are not made once: %v", err)
	}
	for _, f := range []string{m.ClientKeyFile(), m.hostKeyFile()} {
		if info, err := os.Stat(f); err != nil || hasModes && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", f, info.Mode(), err)
		}
	}
	if err := m.MakeSocketDir(); err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{m.DataDir, m.StateDir, m.ConfigFile, m.SocketDir} {
		if _, err := os.Stat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

func TestNewerDataIsRefused(t *testing.T) {
	m := testMachine(t, "new")
	if err := m.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		`{"version":99}`: "newer Berth", `{"ver`: "damaged", ``: "damaged",
	} {
		os.WriteFile(m.recordFile(), []byte(body), 0o600)
		for _, err := range []error{m.Check(), m.Create(t.Context())} {
			if !errors.Is(err, ErrAtRisk) || !strings.Contains(err.Error(), want) {
				t.Errorf("record %q: %v", body, err)
			}
		}
	}
}

func TestWriteFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := WriteFile(file, []byte("one"), 0o640); err != nil {
		t.Fatal(err)
	}
	// A directory cannot be replaced by a file: the old content stays, and no rubbish.
	blocked := filepath.Join(dir, "d")
	os.MkdirAll(filepath.Join(blocked, "x"), 0o700)
	if err := WriteFile(blocked, []byte("two"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
	body, _ := os.ReadFile(file)
	if info, _ := os.Stat(file); string(body) != "one" || hasModes && info.Mode().Perm() != 0o640 {
		t.Errorf("%q with mode %v", body, info.Mode())
	}
}

// hasModes says whether files have modes: on Windows the user's profile keeps others out.
const hasModes = os.PathSeparator == '/'

func TestDisk(t *testing.T) {
	m := testMachine(t, "disk")
	if err := m.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PrepareDisk(4<<30, nil); err != nil {
		t.Fatal(err)
	}
	if size, used := m.DiskUsage(); size != 4<<30 || hasModes && used > 1<<20 { // Wine has no sparse files
		t.Errorf("size %d, occupied %d: want 4 GiB, sparse", size, used)
	}
	if _, err := m.PrepareDisk(8<<30, nil); err != nil {
		t.Errorf("cannot grow: %v", err)
	}
	if _, err := m.PrepareDisk(4<<30, nil); err == nil || !strings.Contains(err.Error(), "cannot shrink") {
		t.Errorf("shrinking: %v", err)
	}
	if _, err := m.PrepareDisk(8<<30, ownFormat{}); !errors.Is(err, ErrAtRisk) {
		t.Errorf("a hypervisor that does not use the disk there is: %v, want %v", err, ErrAtRisk)
	}
	if err := os.Remove(filepath.Join(m.DataDir, "data.img")); err != nil {
		t.Fatal(err)
	}
	path, err := m.PrepareDisk(8<<30, ownFormat{})
	if err != nil || path != filepath.Join(m.DataDir, "data.own") {
		t.Errorf("PrepareDisk = %q, %v", path, err)
	}
	if size, used := m.DiskUsage(); size != 0 || used == 0 {
		t.Errorf("size %d, occupied %d: its own format tells nothing of the size", size, used)
	}
	if _, err := m.PrepareDisk(8<<30, nil); !errors.Is(err, ErrAtRisk) {
		t.Errorf("back again: %v, want %v", err, ErrAtRisk)
	}
}

// ownFormat is a hypervisor's.
type ownFormat struct{}

func (ownFormat) DiskSuffix() string { return ".own" }
func (ownFormat) MakeDisk(path string, _ int64) error {
	return os.WriteFile(path, make([]byte, 5000), 0o600)
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "lock")
	if Locked(path) {
		t.Error("a lock that is not there is held")
	}
	l, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if !Locked(path) {
		t.Error("the lock is not held")
	}
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := WaitLock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		l, err := WaitLock(context.Background(), path)
		if err == nil {
			l.Unlock()
		}
		got <- err
	}()
	l.Unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
	// The wait that was given up must not keep the lock.
	if l, err = WaitLock(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	l.Unlock()
}

// TestLockOfDeleted: whoever waits for a lock whose file is deleted meanwhile
// gets one on the file that is there now.
func TestLockOfDeleted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *Lock)
	go func() {
		l, err := WaitLock(context.Background(), path)
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	time.Sleep(20 * time.Millisecond)
	os.Remove(path)
	first.Unlock()
	second := <-got
	if !Locked(path) {
		t.Error("the lock is on the deleted file")
	}
	second.Unlock()
}

func TestLastState(t *testing.T) {
	m := testMachine(t, "state")
	if s := m.LastState(); s.State != api.Stopped || s.Name != "state" {
		t.Errorf("a machine without a file: %+v", s)
	}
	if err := os.MkdirAll(m.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.SaveState(api.Status{State: api.Running, PID: 77, Version: "1.2.3"}); err != nil {
		t.Fatal(err)
	}
	if s := m.LastState(); s.State != api.Failed || s.PID != 0 || !strings.Contains(s.LastError, "77") {
		t.Errorf("running without a daemon: %+v", s)
	}
	l, err := TryLock(m.DaemonLock())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	if s := m.LastState(); s.State != api.Running || s.PID != 77 || s.Version != "1.2.3" {
		t.Errorf("running with a daemon: %+v", s)
	}
	if err := os.WriteFile(m.stateFile(), []byte(`{"state":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := m.LastState(); s.State != api.Starting {
		t.Errorf("a damaged file with a daemon: %+v", s)
	}
}
