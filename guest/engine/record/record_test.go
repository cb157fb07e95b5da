package record

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func TestTransitions(t *testing.T) {
	all := []Status{Created, Running, Paused, Restarting, Exited, Removing, Dead}
	allowed := 0
	for _, from := range all {
		for _, to := range all {
			s := from
			if err := s.Transition(to); err == nil {
				allowed++
				if s != to {
					t.Errorf("%v → %v left %v", from, to, s)
				}
			} else if s != from {
				t.Errorf("a refused %v → %v left %v", from, to, s)
			}
		}
		var back Status
		if text, _ := from.MarshalText(); back.UnmarshalText(text) != nil || back != from {
			t.Errorf("%v does not survive its name", from)
		}
	}
	if allowed != 17 {
		t.Errorf("%d transitions are allowed, the drawing has 17", allowed)
	}
	bad := Status(99)
	if bad.Transition(Running) == nil || bad.UnmarshalText([]byte("x")) == nil {
		t.Error("nonsense passed")
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{ID: NewID(), Name: "web", Created: time.Unix(5, 0).UTC(),
		Config: &container.Config{Image: "x"}, HostConfig: &container.HostConfig{AutoRemove: true},
		State: State{Status: Paused, ExitCode: 3}}
	for _, durable := range []bool{true, false} {
		_ = s.Create(want.ID)
		if err := s.Save(want, durable); err != nil {
			t.Fatal(err)
		}
	}
	torn := NewID()
	if err := s.Create(torn); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(torn), "container.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	got, broken, err := s.Load()
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if len(broken) != 1 || broken[0] != torn {
		t.Errorf("broken: %v", broken)
	}
	if err := s.Remove(want.ID); err != nil {
		t.Fatal(err)
	}
	if got, _, _ = s.Load(); len(got) != 0 {
		t.Error("a removed record is still there")
	}
}

func TestLaterSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "schema.json")
	if err := os.WriteFile(name, []byte(`{"schema":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "later version") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(name); string(data) != `{"schema":99}` {
		t.Error("a refused store was written to")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"schema":1,"id":"a","config":{},"hostConfig":{},"state":{"status":"running"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decode(data); err == nil && (r.Config == nil || r.HostConfig == nil) {
			t.Error("an incomplete record passed")
		}
	})
}
