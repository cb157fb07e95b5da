package hostpath

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world makes two shared folders, /home/u and /data (with /data/rw shared again
// apart), and a file that is not shared.
func world(t testing.TB) (Map, string) {
	t.Helper()
	top := t.TempDir()
	for _, dir := range []string{"home/src/deep", "data/rw/wrong", "data/sub", "rw/right", "machine"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"home/src/file", "data/sub/file", "machine/secret"} {
		if err := os.WriteFile(filepath.Join(top, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"home/rel": "src/deep", "home/abs": "/home/u/src", "home/other": "/data/sub", "home/updown": "../../data/sub",
		"home/out": "/machine", "home/real": filepath.Join(top, "machine"), "home/dotdot": "../../../../../../machine",
		"home/loop": "loop2", "home/loop2": "loop", "home/dangling": "/home/u/none", "home/tricky": "rel/../file",
		"home/alias": "/Users/u/src", "home/src/deep/up": "..", "home/nested": "/data/rw/right", "home/torw": "/data/rw/../sub",
		"home/proc": "/proc/self/root", "home/root": "/",
	} {
		if err := os.Symlink(target, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(top, "home")
	return Map{{Path: "/home/u", Dir: home}, {Path: "/Users/u", Dir: home},
		{Path: "/data", Dir: filepath.Join(top, "data")}, {Path: "/data/rw", Dir: filepath.Join(top, "rw")}}, top
}

// TestOpenWindows has the same folders on a Windows host.
func TestOpenWindows(t *testing.T) {
	_, top := world(t)
	m := Map{{Path: "/c/Users/u", Dir: filepath.Join(top, "home"), Windows: true}, {Path: "/d/data", Dir: filepath.Join(top, "data"), Windows: true}}
	for link, target := range map[string]string{"home/drive": `D:\data\sub`, "home/back": `src\deep`, "home/away": `C:\Windows`} {
		if err := os.Symlink(target, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		`C:\Users\u\src\file`:    "home/src/file",
		`c:/users/U/src`:         "home/src",
		`/c/Users/u/src`:         "home/src",
		`//c/Users/u/src/../src`: "home/src",
		`D:\data\sub\file`:       "data/sub/file",
		`C:\Users\u\drive\file`:  "data/sub/file",
		`C:\Users\u\back`:        "home/src/deep",
	} {
		f, err := m.Open(t.Context(), name, false)
		if err != nil {
			t.Errorf("Open(%q): %v", name, err)
			continue
		}
		got, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
		f.Close()
		if got != filepath.Join(top, want) {
			t.Errorf("Open(%q) = %s, want %s", name, got, want)
		}
	}
	for name, at := range map[string]string{`C:\Windows`: `C:\windows`, `C:\Users\u\away`: `C:\windows`, `E:\`: `E:\`, `/machine/secret`: `/machine/secret`} {
		_, err := m.Open(t.Context(), name, false)
		var outside *OutsideError
		if !errors.As(err, &outside) || !strings.EqualFold(outside.Path, at) {
			t.Errorf("Open(%q) = %v, want one outside at %s", name, err, at)
		}
	}
	for _, name := range []string{`src`, `C:src`, `\\server\share`, ""} {
		if _, err := m.Open(t.Context(), name, false); err == nil || errors.Is(err, ErrOutside) {
			t.Errorf("Open(%q) = %v", name, err)
		}
	}
}

func TestOpen(t *testing.T) {
	m, top := world(t)
	for name, want := range map[string]string{
		"/home/u":                   "home",
		"/home/u/":                  "home",
		"/home/u/src/file":          "home/src/file",
		"/Users/u/src":              "home/src",
		"/home/u/rel":               "home/src/deep",
		"/home/u/abs/file":          "home/src/file",
		"/home/u/other/file":        "data/sub/file",
		"/home/u/updown/file":       "data/sub/file",
		"/home/u/tricky":            "home/src/file",
		"/home/u/alias/deep":        "home/src/deep",
		"/home/u/rel/up/file":       "home/src/file",
		"/data/rw/right":            "rw/right",
		"/home/u/nested":            "rw/right",
		"/home/u/torw/file":         "data/sub/file",
		"/data/../home/u/./src":     "home/src",
		"/somewhere/../data/sub/":   "data/sub",
		"/home/u/src/../../u/src/.": "home/src",
	} {
		f, err := m.Open(t.Context(), name, false)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, _ := os.Readlink("/proc/self/fd/" + fdOf(f)); got != filepath.Join(top, want) {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
		f.Close()
	}
}

func TestOpenFails(t *testing.T) {
	m, _ := world(t)
	for name, want := range map[string]error{
		"/":                        ErrOutside,
		"/home":                    ErrOutside,
		"/home/user":               ErrOutside,
		"/etc/passwd":              ErrOutside,
		"/home/u/..":               ErrOutside,
		"/home/u/out/secret":       ErrOutside,
		"/home/u/real/secret":      ErrOutside,
		"/home/u/dotdot/secret":    ErrOutside,
		"/home/u/proc/machine":     ErrOutside,
		"/home/u/root":             ErrOutside,
		"/home/u/loop":             unix.ELOOP,
		"/home/u/none":             fs.ErrNotExist,
		"/home/u/dangling":         fs.ErrNotExist,
		"/data/rw/wrong":           fs.ErrNotExist,
		"/home/u/src/file/x":       unix.ENOTDIR,
		"/home/u/" + name(256):     unix.ENAMETOOLONG,
		"/home/u/src/none/../deep": fs.ErrNotExist,
	} {
		f, err := m.Open(t.Context(), name, false)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"", "relative", "/home/u/\x00"} {
		if _, err := m.Open(t.Context(), name, false); err == nil {
			t.Errorf("%q was opened", name)
		}
	}
	if _, err := (Map)(nil).Open(t.Context(), "/", true); !errors.Is(err, ErrOutside) {
		t.Errorf("without folders: %v", err)
	}
}

func name(n int) string { return strings.Repeat("x", n) }

func fdOf(f *os.File) string { return strconv.Itoa(int(f.Fd())) }

func TestOpenCreates(t *testing.T) {
	m, top := world(t)
	f, err := m.Open(t.Context(), "/home/u/abs/new/er", true)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if st, err := os.Stat(filepath.Join(top, "home/src/new/er")); err != nil || !st.IsDir() {
		t.Errorf("not made: %v", err)
	}
	if _, err := m.Open(t.Context(), "/home/u/out/new", true); !errors.Is(err, ErrOutside) {
		t.Errorf("made something outside: %v", err)
	}
	if _, err := os.Stat(filepath.Join(top, "machine/new")); err == nil {
		t.Error("a link led out of the folder")
	}
}

func TestOpenWaitsForTheMount(t *testing.T) {
	dir := t.TempDir()
	m := Map{{Path: "/home/u", Dir: dir, Mounted: true}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Open(ctx, "/home/u", true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a folder that is not mounted: %v", err)
	}
	if err := os.WriteFile(dir+".error", []byte("no such device"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + ".error")
	if _, err := m.Open(t.Context(), "/home/u", true); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("a folder that failed: %v", err)
	}
}

// TestOpenRace swaps a directory for a link to what is not shared while paths
// through it are opened.
func TestOpenRace(t *testing.T) {
	m, top := world(t)
	stop := make(chan struct{})
	done := make(chan struct{})
	home := filepath.Join(top, "home")
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			unix.Renameat2(unix.AT_FDCWD, filepath.Join(home, "src"), unix.AT_FDCWD, filepath.Join(home, "real"), unix.RENAME_EXCHANGE)
		}
	}()
	defer func() { close(stop); <-done }()
	opened := 0
	for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
		for _, name := range []string{"/home/u/src/secret", "/home/u/src/file"} {
			f, err := m.Open(t.Context(), name, false)
			if err != nil {
				continue
			}
			opened++
			if got, _ := os.Readlink("/proc/self/fd/" + fdOf(f)); strings.Contains(got, "machine") {
				t.Fatalf("%s led to %s", name, got)
			}
			f.Close()
		}
	}
	if opened == 0 {
		t.Error("nothing was ever opened: the test shows nothing")
	}
}

func TestOpenLeavesNothingOpen(t *testing.T) {
	m, _ := world(t)
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := count()
	for range 50 {
		for _, name := range []string{"/home/u/updown/file", "/home/u/loop", "/home/u/nested", "/home/u/..", "/home/u/none/x", "/home/u/torw"} {
			if f, err := m.Open(t.Context(), name, false); err == nil {
				f.Close()
			}
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

func FuzzOpen(f *testing.F) {
	m, top := world(f)
	f.Add("/home/u/torw/file")
	f.Add("/home/u/../u/rel/./..//src/real/up")
	f.Add("/data/rw/../../home/u/root/home/u/proc")
	f.Fuzz(func(t *testing.T, name string) {
		file, err := m.Open(t.Context(), name, false)
		if err != nil {
			return
		}
		defer file.Close()
		got, _ := os.Readlink("/proc/self/fd/" + fdOf(file))
		inside := false
		for _, folder := range m {
			inside = inside || got == folder.Dir || strings.HasPrefix(got, folder.Dir+"/")
		}
		if !inside || !strings.HasPrefix(got, top) {
			t.Errorf("%q led to %s", name, got)
		}
	})
}
