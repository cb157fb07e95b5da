package dockercontext

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"

	"github.com/berthvm/berth/host/machine"
)

// fixture is a docker configuration without a docker, and a machine that runs.
type fixture struct {
	*Contexts
	m machine.Machine
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the endpoints are unix sockets")
	}
	old := config.Dir()
	config.SetDir(t.TempDir())
	t.Cleanup(func() { config.SetDir(old) })
	c := Open()
	c.defaultHost = "unix://" + filepath.Join(t.TempDir(), "none.sock")
	return fixture{c, newMachine(t)}
}

func newMachine(t *testing.T) machine.Machine {
	t.Helper()
	dir := t.TempDir()
	h, err := machine.Locate(func(string) string { return dir })
	if err != nil {
		t.Fatal(err)
	}
	m, err := h.Machine(machine.Default)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.MakeSocketDir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Delete() })
	return m
}

func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func (f fixture) current(t *testing.T) string {
	t.Helper()
	file, err := config.Load(config.Dir())
	if err != nil {
		t.Fatal(err)
	}
	return file.CurrentContext
}

func (f fixture) host(t *testing.T) string {
	t.Helper()
	meta, err := f.store.GetMetadata("berth")
	if err != nil {
		return ""
	}
	return hostOf(meta)
}

// other makes a context that is not ours the current one.
func (f fixture) other(t *testing.T, name, host string) {
	t.Helper()
	err := f.store.CreateOrUpdate(store.Metadata{Name: name, Endpoints: map[string]any{docker.DockerEndpoint: docker.EndpointMeta{Host: host}},
		Metadata: command.DockerContext{}})
	if err != nil {
		t.Fatal(err)
	}
	file, err := config.Load(config.Dir())
	if err != nil {
		t.Fatal(err)
	}
	file.CurrentContext = name
	if err := file.Save(); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureAndRemove(t *testing.T) {
	f := newFixture(t)
	for range 2 {
		if err := f.Ensure(f.m); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.host(t); got != f.m.DockerHost() {
		t.Errorf("it points at %q, want %q", got, f.m.DockerHost())
	}
	if got := f.current(t); got != "berth" {
		t.Errorf("nothing else worked, but the current context is %q", got)
	}
	for range 2 {
		if err := f.Remove(f.m); err != nil {
			t.Fatal(err)
		}
	}
	if f.host(t) != "" || f.current(t) != "" {
		t.Errorf("left: %q, current %q", f.host(t), f.current(t))
	}
}

// TestWorkingContextStays: neither the default nor a chosen context loses its
// place while something answers there, or could.
func TestWorkingContextStays(t *testing.T) {
	t.Run("default", func(t *testing.T) {
		f := newFixture(t)
		listen(t, f.defaultHost[len("unix://"):])
		if err := f.Ensure(f.m); err != nil || f.current(t) != "" {
			t.Errorf("current is %q, %v", f.current(t), err)
		}
	})
	t.Run("local", func(t *testing.T) {
		f := newFixture(t)
		path := filepath.Join(t.TempDir(), "d.sock")
		listen(t, path)
		f.other(t, "mine", "unix://"+path)
		if err := f.Ensure(f.m); err != nil || f.current(t) != "mine" {
			t.Errorf("current is %q, %v", f.current(t), err)
		}
	})
	t.Run("remote", func(t *testing.T) {
		f := newFixture(t)
		f.other(t, "mine", "ssh://far.example")
		if err := f.Ensure(f.m); err != nil || f.current(t) != "mine" {
			t.Errorf("current is %q, %v", f.current(t), err)
		}
	})
	t.Run("dead", func(t *testing.T) {
		f := newFixture(t)
		f.other(t, "mine", "unix:///nowhere/d.sock")
		if err := f.Ensure(f.m); err != nil || f.current(t) != "berth" {
			t.Errorf("current is %q, %v", f.current(t), err)
		}
	})
}

// TestForeignContext: a context of our name that we did not make is not touched,
// neither by a start nor by a delete.
func TestForeignContext(t *testing.T) {
	f := newFixture(t)
	f.other(t, "berth", "unix:///else/d.sock")
	if err := f.Ensure(f.m); !errors.Is(err, ErrTaken) {
		t.Errorf("Ensure: %v", err)
	}
	if err := f.Remove(f.m); err != nil || f.host(t) != "unix:///else/d.sock" {
		t.Errorf("Remove: %v, left %q", err, f.host(t))
	}
}

// TestOtherHome: the context of another BERTH_HOME is taken over when its
// machine is off, and respected while it runs.
func TestOtherHome(t *testing.T) {
	f := newFixture(t)
	other := newMachine(t)
	if err := f.Ensure(other); err != nil {
		t.Fatal(err)
	}
	if err := f.Ensure(f.m); err != nil || f.host(t) != f.m.DockerHost() {
		t.Errorf("the other is off: %v, %q", err, f.host(t))
	}
	listen(t, f.m.DockerAddress())
	if err := f.Ensure(other); !errors.Is(err, ErrTaken) {
		t.Errorf("the other runs: %v", err)
	}
}

// TestBelow finds the contexts of a home, also of a machine whose files are gone, and
// leaves others alone.
func TestBelow(t *testing.T) {
	f := newFixture(t)
	other := newMachine(t)
	if err := errors.Join(f.Ensure(f.m), f.store.CreateOrUpdate(store.Metadata{Name: "remote"})); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(f.m.DataDir); err != nil {
		t.Fatal(err)
	}
	data := filepath.Dir(f.m.DataDir)
	if got := f.Below(data); !slices.Equal(got, []string{"berth"}) {
		t.Errorf("Below() = %q", got)
	}
	if err := f.RemoveBelow(filepath.Dir(other.DataDir)); err != nil || len(f.Below(data)) != 1 {
		t.Errorf("another home's removal: %v", err)
	}
	if err := f.RemoveBelow(data); err != nil || len(f.Below(data)) != 0 {
		t.Errorf("RemoveBelow: %v", err)
	}
	if _, err := f.store.GetMetadata("remote"); err != nil {
		t.Errorf("a context of the user's: %v", err)
	}
	if file, err := config.Load(config.Dir()); err != nil || file.CurrentContext != "" {
		t.Errorf("the current context is %q, %v", file.CurrentContext, err)
	}
}
