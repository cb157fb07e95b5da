package daemon

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/fakeguest"
)

// watch collects snapshots until the test ends.
func (b *bench) watch(t *testing.T) (next func(what string, wanted func(api.Snapshot) bool) api.Snapshot, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	seen, end := make(chan api.Snapshot, 1000), make(chan error, 1)
	go func() { end <- b.client.Watch(ctx, func(s api.Snapshot) { seen <- s }) }()
	return func(what string, wanted func(api.Snapshot) bool) api.Snapshot {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case s := <-seen:
				if wanted(s) {
					return s
				}
			case <-timeout:
				t.Fatalf("never seen: %s", what)
			}
		}
	}, end
}

func names(s api.Snapshot) []string {
	var all []string
	for _, c := range s.Containers {
		all = append(all, c.Name)
	}
	return all
}

// TestWatch follows a machine from its start to its end, with what runs in it.
func TestWatch(t *testing.T) {
	inside := &fakeguest.Containers{}
	inside.Set(fakeguest.Container{Name: "web", Image: "nginx", TCP: map[uint16]uint16{8080: 80}})
	b := newBench(t, fakeguest.Options{Containers: inside, EngineDelay: 50 * time.Millisecond})
	b.run(t)
	next, ended := b.watch(t)
	next("a start", func(s api.Snapshot) bool { return s.Status.State == api.Starting })
	next("running", func(s api.Snapshot) bool { return s.Status.State == api.Running })
	s := next("the container", func(s api.Snapshot) bool { return len(s.Containers) == 1 })
	if c := s.Containers[0]; c.Name != "web" || c.Image != "nginx" || !slices.Equal(c.Ports, []api.Port{{Host: 8080, Container: 80, Protocol: "tcp"}}) {
		t.Errorf("%+v", c)
	}
	inside.Set(fakeguest.Container{Name: "web"}, fakeguest.Container{Name: "db"})
	if s := next("another", func(s api.Snapshot) bool { return len(s.Containers) == 2 }); !slices.Equal(names(s), []string{"db", "web"}) {
		t.Errorf("%v", names(s))
	}
	if err := b.client.StopContainer(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	next("one less", func(s api.Snapshot) bool { return slices.Equal(names(s), []string{"db"}) })
	if err := b.client.StopContainer(t.Context(), "web"); err == nil || err.Error() != "No such container: web" {
		t.Errorf("a container that is not there: %v", err)
	}
	if u, err := b.client.Usage(t.Context()); err != nil || u.CPUs != 2 || u.MemoryUsed != 1<<29 || u.MemoryTotal != 2<<30 || u.Busy != 15*time.Second {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := b.client.Stop(t.Context(), patience); err != nil {
		t.Error(err)
	}
	s = next("the end", func(s api.Snapshot) bool { return !s.Status.State.Alive() })
	if len(s.Containers) != 0 {
		t.Errorf("a machine that is off runs %v", names(s))
	}
	if err := <-ended; !errors.Is(err, api.ErrEnded) {
		t.Errorf("%v", err)
	}
}

// TestQuestionsBeforeUp: a guest that is not up is not asked.
func TestQuestionsBeforeUp(t *testing.T) {
	b := newBench(t, fakeguest.Options{HangBefore: "engine"})
	b.run(t)
	if _, err := b.client.Usage(t.Context()); err == nil || err.Error() != errNotUp.Error() {
		t.Errorf("%v", err)
	}
	if err := b.client.StopContainer(t.Context(), "x"); err == nil || err.Error() != errNotUp.Error() {
		t.Errorf("%v", err)
	}
}
