package network

import (
	"os"
	"testing"

	"github.com/berthvm/berth/guest/network/internal/link"
)

func TestSpareIsUsedOrExchanged(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "one"})
	m.must(err)
	prepare := func() Endpoint {
		t.Helper()
		m.Settle()
		m.must(m.Prepare(ctx))
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.spare.ep
	}

	ep := prepare()
	a := m.container("a")
	if got := a.attach(AttachRequest{Network: Bridge, Names: []string{"x"}}); got.ID != ep.ID || got.ContainerID != a.id || len(got.Names) != 2 {
		t.Errorf("the spare was not used: %+v, want %s", got, ep.ID)
	}

	// A wish that the spare does not fit leaves it for the next.
	ep = prepare()
	for name, req := range map[string]AttachRequest{"mac": {Network: Bridge, MAC: "02:00:00:00:00:07"}, "user-defined": {Network: "one"}, "none": {Network: None}} {
		c := m.container(name)
		if got := c.attach(req); got.ID == ep.ID {
			t.Errorf("%s: got the spare", name)
		}
		in, err := c.ns.Dial()
		m.must(err)
		links, err := in.List()
		m.must(err)
		in.Close()
		want := 2 // lo, eth0
		if name == "none" {
			want = 1
		}
		if len(links) != want {
			t.Errorf("%s: %d interfaces, want %d: %+v", name, len(links), want, links)
		}
		m.mu.Lock()
		kept := m.spare != nil && m.spare.ep.ID == ep.ID
		m.mu.Unlock()
		if !kept {
			t.Errorf("%s: the spare was lost", name)
		}
	}

	// A namespace that is never attached takes its endpoint with it.
	path, err := m.NewNS(ctx, "unused")
	m.must(err)
	if again, err := m.NewNS(ctx, "unused"); err != nil || again != path {
		t.Errorf("second NewNS: %s, %v", again, err)
	}
	m.must(m.Release(ctx, "unused"))
	if _, err := os.Stat(path); err == nil || link.Pinned(path) {
		t.Error("the namespace is still pinned")
	}
	for _, l := range m.links() {
		if l == ep.Device {
			t.Error("the spare's interface is left")
		}
	}
}

func TestBadIDs(t *testing.T) {
	m := newMachine(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00b"} {
		if _, err := m.NewNS(ctx, id); err == nil {
			t.Errorf("NewNS took %q", id)
		}
		if _, err := m.Attach(ctx, AttachRequest{ContainerID: id, Network: None}); err == nil {
			t.Errorf("Attach took %q", id)
		}
		if err := m.Release(ctx, id); err == nil {
			t.Errorf("Release took %q", id)
		}
	}
}
