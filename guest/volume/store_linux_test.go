package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestLife(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Create(ctx, "data", "", nil, map[string]string{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Path, "f"), []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(v.Path, "f"), filepath.Join(v.Path, "g")); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil { // a restart
		t.Fatal(err)
	}
	if again, err := s.Create(ctx, "data", "local", nil, nil); err != nil || again.Labels["a"] != "b" {
		t.Errorf("a volume that exists was made anew: %+v, %v", again, err)
	}
	if size, err := s.Size(ctx, "data"); err != nil || size != 5 {
		t.Errorf("size %d, %v; want 5", size, err)
	}
	if _, err := s.Mount(ctx, "data", "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "data", true); !errdefs.IsConflict(err) {
		t.Errorf("a held volume was removed: %v", err)
	}
	if err := s.Unmount(ctx, "data", "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "data", false); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("data"); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
	if err := s.Remove(ctx, "data", true); err != nil {
		t.Errorf("force: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	ctx := context.Background()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "a/b", ".", "..", "x", "-a", "a b", "a\x00b"} {
		if _, err := s.Create(ctx, name, "", nil, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v", name, err)
		}
		if _, err := s.Get(name); !errdefs.IsNotFound(err) {
			t.Errorf("get %q: %v", name, err)
		}
	}
	if _, err := s.Create(ctx, "vol", "nfs", nil, nil); !errdefs.IsNotFound(err) {
		t.Errorf("unknown driver: %v", err)
	}
	for want, options := range map[string]map[string]string{
		`create vol: invalid option: "what"`:                    {"what": "x"},
		`create vol: missing required option: "type"`:           {"device": "tmpfs"},
		`create vol: missing required option: "device"`:         {"type": "tmpfs", "o": "size=1m"},
		`create vol: quota size requested but no quota support`: {"size": "1g"},
		`create vol: invalid size: 'x'`:                         {"size": "x"},
	} {
		if _, err := s.Create(ctx, "vol", "", options, nil); !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("%v: %v, want %s", options, err, want)
		}
	}
	if v, err := s.Create(ctx, "", "", nil, nil); err != nil || !v.Anonymous() || len(v.Name) != 64 {
		t.Errorf("anonymous: %+v, %v", v, err)
	}
}

func TestResolveNet(t *testing.T) {
	for in, want := range map[string]string{"addr=localhost,rw": "addr=127.0.0.1,rw", "addr=10.0.0.1": "addr=10.0.0.1", "rw": "rw"} {
		if _, got, err := resolveNet(context.Background(), "nfs", ":/x", in); err != nil || got != want && in != "addr=localhost,rw" {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
	}
	if _, got, _ := resolveNet(context.Background(), "tmpfs", "tmpfs", "addr=x"); got != "addr=x" {
		t.Errorf("tmpfs: %s", got)
	}
	if got := hidden("user=u,password=secret,rw"); got != "user=u,password=********,rw" {
		t.Errorf("shown: %s", got)
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("nfs", "addr=10.0.0.1,rw", ":/x", "")
	f.Add("none", "bind,ro", "/x", "1g")
	f.Fuzz(func(t *testing.T, kind, o, device, size string) {
		options := map[string]string{"type": kind, "o": o, "device": device}
		if size != "" {
			options["size"] = size
		}
		if err := checkOptions(options); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v is not the client's fault", err)
		}
		mountOptions(o)
		hidden(o)
	})
}

// TestBind: the device of a bind is a path of the host.
func TestBind(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	ctx := context.Background()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, device := range map[string]string{"good": "/host/path", "bad": "/etc"} {
		options := map[string]string{"type": "none", "o": "bind,ro", "device": device}
		if _, err := s.Create(ctx, name, "", options, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mount(ctx, "good", "c"); err == nil {
		t.Errorf("a bind without folders of the host: %v", err)
	}
	s.BindFrom(func(_ context.Context, path string) (*os.File, error) {
		if path != "/host/path" {
			return nil, os.ErrNotExist
		}
		return os.Open(host)
	})
	dir, err := s.Mount(ctx, "good", "c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), nil, 0o600); err == nil {
		t.Error("a read-only bind was written to")
	}
	if err := s.Unmount(ctx, "good", "c"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "f")); err == nil {
		t.Error("it is still mounted")
	}
	if _, err := s.Mount(ctx, "bad", "c"); err == nil {
		t.Error("a path that the host does not share was mounted")
	}
}

// TestNoAnswer: a server that does not answer keeps nobody from anything but its
// own volume, and only for a while.
func TestNoAnswer(t *testing.T) {
	ctx := context.Background()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan string, 1), make(chan error)
	s.attach = func(_, _, _ string, _ uintptr, data string) error {
		asked <- data
		return <-answer
	}
	options := map[string]string{"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,rw,mountaddr=a.invalid,password=secret"}
	if _, err := s.Create(ctx, "far", "", options, nil); err != nil {
		t.Fatal(err)
	}
	wanted, leave := context.WithCancelCause(ctx)
	go func() {
		if data := <-asked; data != "addr=127.0.0.1,mountaddr=a.invalid,password=secret" {
			t.Errorf("the kernel is told %q", data)
		}
		leave(errNoAnswer)
	}()
	if _, err := s.Mount(wanted, "far", "c1"); !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "failed to mount local volume: mount :/x:") ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("mount: %v", err)
	}
	if _, err := s.Create(ctx, "near", "", nil, nil); err != nil {
		t.Error(err)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if err := s.Unmount(ctx, "far", "c1"); err != nil { // who tidies up after it need not wait
		t.Error(err)
	}
	soon, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := s.Mount(soon, "far", "c2"); err == nil || !strings.Contains(err.Error(), "is being mounted") {
		t.Errorf("a second mount: %v", err)
	}
	answer <- errors.New("connection timed out")
	if err := s.Remove(ctx, "far", false); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// TestNames: names of servers become addresses, and those that have none an error.
func TestNames(t *testing.T) {
	for _, c := range []struct{ kind, device, data, wantDevice, wantData string }{
		{"nfs", ":/x", "addr=localhost,ro", ":/x", "addr=127.0.0.1,ro"},
		{"nfs4", ":/x", "mountaddr=b,addr=localhost", ":/x", "mountaddr=b,addr=127.0.0.1"},
		{"cifs", "//localhost/share/a", "user=x", "//127.0.0.1/share/a", "user=x"},
		{"cifs", "//server/share", "addr=192.0.2.1", "//server/share", "addr=192.0.2.1"},
		{"tmpfs", "//localhost/x", "addr=localhost", "//localhost/x", "addr=localhost"},
		{"nfs", ":/x", "addr=2001:db8::1", ":/x", "addr=2001:db8::1"},
	} {
		device, data, err := resolveNet(context.Background(), c.kind, c.device, c.data)
		device, data = strings.Replace(device, "::1", "127.0.0.1", 1), strings.Replace(data, "=::1", "=127.0.0.1", 1)
		if err != nil || device != c.wantDevice || data != c.wantData {
			t.Errorf("%s %s %s: %q, %q, %v", c.kind, c.device, c.data, device, data, err)
		}
	}
	if _, _, err := resolveNet(context.Background(), "cifs", "//host.invalid/x", ""); err == nil {
		t.Error("a name without an address was resolved")
	}
}

// TestHold: a store that is opened anew does not take away what is held.
func TestHold(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	ctx, dir := context.Background(), t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "fast", "", map[string]string{"type": "tmpfs", "device": "tmpfs"}, nil); err != nil {
		t.Fatal(err)
	}
	path, err := s.Mount(ctx, "fast", "c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	s.Hold("fast", "c1")
	if _, err := s.Mount(ctx, "fast", "c2"); err != nil {
		t.Error(err)
	}
	if err := s.Unmount(ctx, "fast", "c2"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "fast", true); !errdefs.IsConflict(err) {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(filepath.Join(path, "f")); err != nil {
		t.Error(err)
	}
	if err := s.Unmount(ctx, "fast", "c1"); err != nil {
		t.Error(err)
	}
	if mounted(path) {
		t.Error("nobody holds it, and it is still mounted")
	}
}
