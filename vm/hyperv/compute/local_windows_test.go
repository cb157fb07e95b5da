package compute

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm"
)

// needStandIn skips a test on a Windows whose computecore.dll is the real one.
func needStandIn(t *testing.T) (trace string) {
	t.Helper()
	if os.Getenv("BERTH_HCS_STANDIN") != "1" {
		t.Skip("needs the stand-in for computecore.dll: run make check-windows")
	}
	trace = filepath.Join(t.TempDir(), "trace")
	t.Setenv("HCS_TRACE", trace)
	return trace
}

// files makes the files of a design.
func files(t *testing.T) Design {
	t.Helper()
	dir := t.TempDir()
	d := full()
	d.Kernel, d.Initrd, d.Restore = filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initramfs"), ""
	d.Disks = []Disk{{Path: filepath.Join(dir, "root.vhdx"), ReadOnly: true}, {Path: filepath.Join(dir, "data.vhdx")}}
	for _, f := range d.Files() {
		if err := os.WriteFile(f.Path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// calls are the stand-in's notes: the call, and the rest of its line.
func calls(t *testing.T, trace string) (names []string, lines map[string]string) {
	t.Helper()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	lines = map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		name, rest, _ := strings.Cut(line, "\t")
		names = append(names, name)
		lines[name] = rest
	}
	return names, lines
}

func TestCallPath(t *testing.T) {
	trace := needStandIn(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	version, err := Local().Probe(ctx)
	if err != nil || !strings.HasPrefix(version, "Hyper-V, Windows ") {
		t.Fatalf("Probe() = %q, %v", version, err)
	}
	d := files(t)
	s, err := Local().Create(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.RuntimeID() != id {
		t.Errorf("runtime id %q, want %q", s.RuntimeID(), id)
	}
	state := filepath.Join(filepath.Dir(d.Kernel), "state")
	for _, o := range []Order{
		{Op: OpStart}, {Op: OpMemory, MemoryMiB: 512}, {Op: OpPause}, {Op: OpSave, Path: state}, {Op: OpResume}, {Op: OpTerminate},
	} {
		if err := s.Do(ctx, o); err != nil {
			t.Fatalf("%s: %v", o.Op, err)
		}
	}
	var events []Event
	for e := range s.Events() {
		events = append(events, e)
	}
	if len(events) != 1 || events[0] != (Event{Exited: true, Forced: true}) {
		t.Errorf("events %+v", events)
	}
	if err := s.Do(ctx, Order{Op: OpTerminate}); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("an order for a machine that is off: %v, want %v", err, vm.ErrNotRunning)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := s.Do(ctx, Order{Op: OpStart}); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("an order after Close: %v", err)
	}
	names, lines := calls(t, trace)
	want := "properties of the service, grant, grant, grant, grant, create, callback, properties, start, modify, pause, grant, save, resume, " +
		"terminate, terminate, terminate, close, revoke, revoke, revoke, revoke, revoke"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("calls: %s\nwant:  %s", got, want)
	}
	if got := strings.TrimPrefix(lines["create"], id+"\t"); got != string(d.Document()) {
		t.Errorf("the document that arrived: %s\nwant: %s", got, d.Document())
	}
	if want := string(saveOptions(state)); !strings.HasSuffix(lines["save"], want) {
		t.Errorf("save: %s, want %s", lines["save"], want)
	}
}

func TestGuestPowersOff(t *testing.T) {
	needStandIn(t)
	s, err := Local().Create(t.Context(), files(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := errors.Join(s.Do(t.Context(), Order{Op: OpStart}), s.Do(t.Context(), Order{Op: OpShutDown})); err != nil {
		t.Fatal(err)
	}
	if e := <-s.Events(); e != (Event{Exited: true}) {
		t.Errorf("event %+v", e)
	}
}

func TestManyMachines(t *testing.T) {
	needStandIn(t)
	done := make(chan error)
	const machines = 8
	for range machines {
		d := files(t)
		go func() {
			s, err := Local().Create(t.Context(), d)
			if err == nil {
				err = errors.Join(s.Do(t.Context(), Order{Op: OpStart}), s.Close())
				for range s.Events() {
				}
			}
			done <- err
		}()
	}
	for range machines {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	needStandIn(t)
	d := files(t)
	d.Kernel += ".gone"
	if _, err := Local().Create(t.Context(), d); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	s, err := Local().Create(t.Context(), files(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var f *Failure
	if err := s.Do(t.Context(), Order{Op: OpPause}); !errors.As(err, &f) || f.Message != "not in this state" {
		t.Errorf("a machine that does not run is paused: %v", err)
	}
	t.Setenv("HCS_DENY", "1")
	if _, err := Local().Probe(t.Context()); !errors.Is(err, ErrElevation) || !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("Probe of who is not elevated: %v", err)
	}
	if _, err := Local().Create(t.Context(), files(t)); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Create of who is not elevated: %v", err)
	}
}

// TestHold: what is held cannot be moved away, and is what it was.
func TestHold(t *testing.T) {
	d := files(t)
	var all []fileToHold
	for _, f := range d.Files() {
		all = append(all, fileToHold{File: f})
	}
	h, err := hold(windows.Token(0), all)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.paths) != 4 || !strings.EqualFold(filepath.Base(h.paths[0]), "vmlinux") || strings.HasPrefix(h.paths[0], `\\`) {
		t.Errorf("paths %q", h.paths)
	}
	if err := os.Rename(d.Kernel, d.Kernel+"2"); err == nil {
		t.Error("a file that is held can be renamed")
	}
	h.release()
	if err := os.Rename(d.Kernel, d.Kernel+"2"); err != nil {
		t.Errorf("a file that was released cannot be renamed: %v", err)
	}
}
