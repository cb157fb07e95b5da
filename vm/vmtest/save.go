package vmtest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

// testSave saves a machine whose guest knows something, and asks it once it goes on.
// A driver that cannot save says so, and the machine runs on.
func testSave(t *testing.T, b *bench) {
	x, ready := b.booted(t)
	saver, ok := x.Machine.(vm.Saver)
	if !ok {
		return // nothing is promised
	}
	if answer := x.order(t, "stay as you are"); answer != "ok" {
		t.Fatalf("order stay: %s", answer)
	}
	path := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	gone, cancelGone := context.WithCancel(t.Context())
	cancelGone()
	if err := saver.Save(gone, path); err == nil {
		t.Fatal("Save with a cancelled context succeeded")
	}
	err := saver.Save(ctx, path)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Logf("Save: %v", err)
		if answer := x.order(t, "recall"); answer != "as you are" {
			t.Errorf("after a Save that failed, recall: %s", answer)
		}
		return
	}
	if err != nil {
		t.Fatalf("Save: %v", err)
	}
	if err := x.waited(t, killTimeout); err != nil {
		t.Errorf("Wait after Save = %v, want nil", err)
	}
	broken(t, ready)
	_, err = x.Dial(t.Context(), testguest.PortEcho)
	wantErr(t, "Dial after Save", err, vm.ErrNotRunning)
	if err := x.Close(); err != nil { // the disks are free
		t.Errorf("Close: %v", err)
	}

	y := b.machine(t)
	own, err := y.Listen(2000)
	if err != nil {
		t.Fatal(err)
	}
	if err := y.Machine.(vm.Saver).Restore(ctx, path); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	wantErr(t, "Start after Restore", y.Start(ctx), vm.ErrStarted)
	y.called(t)
	if answer := y.order(t, "recall"); answer != "as you are" {
		t.Errorf("after Restore, recall: %s", answer)
	}
	if answer := y.order(t, "dial 2000"); answer != "ok" {
		t.Fatalf("the guest cannot dial: %s", answer)
	}
	echoes(t, accept(t, own, killTimeout), []byte("again"))
	y.order(t, "print still here")
	y.console.waitFor(t, "still here")
	select {
	case <-y.resets:
		t.Error("Config.Reset was called although the guest has not restarted")
	default:
	}
	y.stop(t, stopTimeout)
	if err := y.waited(t, killTimeout); err != nil {
		t.Errorf("Wait after an orderly power-off = %v, want nil", err)
	}
	refusesDamaged(t, b, path)
}

// refusesDamaged restores what is no state.
func refusesDamaged(t *testing.T, b *bench, used string) {
	t.Helper()
	for _, path := range []string{filepath.Join(filepath.Dir(used), "missing"), b.cfg.Kernel} {
		z := b.machine(t)
		ctx, cancel := context.WithTimeout(t.Context(), stopTimeout)
		defer cancel()
		if err := z.Machine.(vm.Saver).Restore(ctx, path); err == nil {
			t.Errorf("Restore of %s succeeded", path)
		}
		if err := z.waited(t, killTimeout); err == nil {
			t.Errorf("Wait after a failed Restore of %s = nil", path)
		}
	}
}
