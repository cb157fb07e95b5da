package volume

import (
	"context"
	"os"
	"path/filepath"
	"testing"

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
