package daemon

import (
	"testing"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/fakeguest"
)

func (b *bench) paused(t *testing.T) bool {
	t.Helper()
	s, err := b.client.Status(t.Context())
	if err != nil || s.State != api.Running {
		t.Fatalf("%+v, %v", s, err)
	}
	return s.Paused
}

// TestPause has a machine paused, resumed, waked by a client, and stopped while it
// is paused.
func TestPause(t *testing.T) {
	b := newBench(t, fakeguest.Options{})
	b.up(t)
	for range 2 { // a paused machine can be paused
		if err := b.client.Pause(t.Context()); err != nil || !b.paused(t) {
			t.Fatalf("Pause: %v", err)
		}
	}
	if _, err := b.client.Usage(t.Context()); err == nil || err.Error() != errPaused.Error() {
		t.Errorf("a paused machine was asked what it uses: %v", err)
	}
	if !b.paused(t) {
		t.Error("a question to the daemon waked the machine")
	}
	for range 2 {
		if err := b.client.Resume(t.Context()); err != nil || b.paused(t) {
			t.Fatalf("Resume: %v", err)
		}
	}
	if err := b.client.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.docker(t, "/_ping"); got == "" || b.paused(t) {
		t.Errorf("a client of docker's got %q, and the machine is paused: %t", got, b.paused(t))
	}
	if err := b.client.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := b.client.Stop(t.Context(), patience); err != nil || s.State != api.Stopped || s.Paused || s.LastError != "" {
		t.Errorf("Stop of a paused machine: %+v, %v", s, err)
	}
	b.end(t)
}
