package daemon

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/fakeguest"
	"github.com/berthvm/berth/vm/vmfake"
)

// witness notes what a guest goes through.
type witness struct {
	mu       sync.Mutex
	boots    int
	orders   []wire.Op
	welcomes []wire.Welcome
}

func (w *witness) options() fakeguest.Options {
	return fakeguest.Options{
		Boots:   func() { w.note(func() { w.boots++ }) },
		Ordered: func(op wire.Op) { w.note(func() { w.orders = append(w.orders, op) }) },
		Welcome: func(got wire.Welcome) { w.note(func() { w.welcomes = append(w.welcomes, got) }) },
	}
}

func (w *witness) note(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// TestSave saves a machine and has it go on, in another daemon.
func TestSave(t *testing.T) {
	var w witness
	b := newBench(t, w.options())
	b.up(t)
	if err := b.client.Pause(t.Context()); err != nil { // it can be saved all the same
		t.Fatal(err)
	}
	s, err := b.client.Save(t.Context())
	if err != nil || s.State != api.Stopped || s.Saved.IsZero() || s.LastError != "" {
		t.Fatalf("Save: %+v, %v", s, err)
	}
	if s, err := b.end(t); err != nil || s.State != api.Stopped || s.Saved.IsZero() {
		t.Errorf("%v, %+v", err, s)
	}
	b.up(t)
	if got := b.docker(t, "/_ping"); got != "OK" {
		t.Errorf("the engine says %q", got)
	}
	if s, err := b.client.Status(t.Context()); err != nil || !s.Saved.IsZero() || !b.Machine.Saved().IsZero() {
		t.Errorf("a saved state is left: %+v, %v", s, err)
	}
	if _, err := os.Stat(b.Machine.SavedFile()); err == nil {
		t.Error("the state's file is left")
	}
	if s, err := b.client.Stop(t.Context(), patience); err != nil || s.LastError != "" {
		t.Errorf("Stop: %+v, %v", s, err)
	}
	b.end(t)
	if w.boots != 1 || len(w.welcomes) != 2 || !bytes.Equal(w.welcomes[0].Secret, w.welcomes[1].Secret) {
		t.Errorf("%d boots, %d welcomes", w.boots, len(w.welcomes))
	}
}

// TestSaveRefused: what cannot be saved runs on, and the guest is told.
func TestSaveRefused(t *testing.T) {
	for name, test := range map[string]struct {
		guest, driver string
		orders        []wire.Op
	}{
		"by the guest":  {guest: "a container uses a folder", orders: []wire.Op{wire.OpSave}},
		"by the driver": {driver: "not this machine", orders: []wire.Op{wire.OpSave, wire.OpStay}},
	} {
		t.Run(name, func(t *testing.T) {
			var w witness
			o := w.options()
			o.SaveErr = test.guest
			b := newBench(t, o)
			driver := vmfake.Options{Guest: fakeguest.New(o)}
			if test.driver != "" {
				driver.SaveErr = errors.New(test.driver)
			}
			b.Driver = vmfake.New(driver)
			if _, err := b.client.Save(t.Context()); !errors.Is(err, api.ErrUnreachable) {
				t.Errorf("Save of a stopped machine = %v", err)
			}
			b.up(t)
			if _, err := b.client.Save(t.Context()); err == nil || !strings.Contains(err.Error(), test.guest+test.driver) {
				t.Errorf("Save = %v", err)
			}
			if got := b.docker(t, "/_ping"); got != "OK" {
				t.Errorf("the engine says %q", got)
			}
			b.client.Stop(t.Context(), patience)
			b.end(t)
			if got := w.orders[:len(w.orders)-1]; !slices.Equal(got, test.orders) {
				t.Errorf("the guest was told %q", got)
			}
		})
	}
}

// TestSavedNoMore: a state that cannot be used is not, and the machine boots anew.
func TestSavedNoMore(t *testing.T) {
	for name, meddle := range map[string]func(*bench){
		"another configuration": func(b *bench) { b.Config.CPUs++ },
		"another version":       func(b *bench) { b.Version = "2.0.0" },
		"a damaged state":       func(b *bench) { os.WriteFile(b.Machine.SavedFile(), []byte("nonsense"), 0o600) },
		"dropped":               func(b *bench) { b.Machine.DropSaved() },
	} {
		t.Run(name, func(t *testing.T) {
			var w witness
			b := newBench(t, w.options())
			driver := b.Driver.(*vmfake.Driver)
			t.Cleanup(driver.Discard)
			b.up(t)
			if _, err := b.client.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.end(t)
			meddle(b)
			b.run(t)
			s, _ := b.follow(t)
			if s.State != api.Running || w.boots != 2 {
				t.Fatalf("it is %s after %d boots: %s", s.State, w.boots, s.LastError)
			}
			i := slices.IndexFunc(s.Start, func(p api.Phase) bool { return p.Name == api.PhaseRestore })
			if told := i >= 0 && s.Start[i].Error != ""; told == (name == "dropped") {
				t.Errorf("the user is told: %t", told)
			}
			if _, err := os.Stat(b.Machine.SavedFile()); err == nil {
				t.Error("the state's file is left")
			}
			if bytes.Equal(w.welcomes[0].Secret, w.welcomes[1].Secret) {
				t.Error("two boots have one secret")
			}
			b.client.Stop(t.Context(), patience)
			b.end(t)
		})
	}
}
