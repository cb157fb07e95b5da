package vmtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

func testProbe(t *testing.T, b *bench) {
	begin := time.Now()
	caps, err := b.driver.Probe(t.Context())
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if caps.Driver == "" || caps.Version == "" || caps.Acceleration == "" || caps.Arch == "" {
		t.Errorf("Probe() = %+v: a field is empty", caps)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("Probe took %v", took)
	}
	again, err := b.driver.Probe(t.Context())
	if err != nil || again != caps {
		t.Errorf("second Probe() = %+v, %v, want %+v", again, err, caps)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.driver.Probe(gone); err == nil {
		t.Error("Probe with a cancelled context succeeded")
	}
}

func testInvalid(t *testing.T, b *bench) {
	missing := filepath.Join(t.TempDir(), "missing")
	tests := []struct {
		name  string
		spoil func(*vm.Config)
	}{
		{"no name", func(c *vm.Config) { c.Name = "" }},
		{"bad name", func(c *vm.Config) { c.Name = "a,b=c" }},
		{"no cpu", func(c *vm.Config) { c.CPUs = 0 }},
		{"no memory", func(c *vm.Config) { c.MemoryMiB = 1 }},
		{"relative kernel", func(c *vm.Config) { c.Kernel = "vmlinux" }},
		{"missing kernel", func(c *vm.Config) { c.Kernel = missing }},
		{"missing initrd", func(c *vm.Config) { c.Initrd = missing }},
		{"missing disk", func(c *vm.Config) { c.Disks = []vm.Disk{{Path: missing}} }},
		{"bad serial", func(c *vm.Config) { c.Disks = []vm.Disk{{Path: c.Kernel, Serial: "a,b"}} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := b.cfg
			tt.spoil(&cfg)
			m, err := b.driver.New(t.Context(), cfg, tempDir(t))
			if err == nil {
				m.Close()
				t.Fatal("New succeeded")
			}
		})
	}
	t.Run("missing directory", func(t *testing.T) {
		m, err := b.driver.New(t.Context(), b.cfg, missing)
		if err == nil {
			m.Close()
			t.Fatal("New succeeded")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		m, err := b.driver.New(gone, b.cfg, tempDir(t))
		if err == nil {
			m.Close()
			t.Fatal("New succeeded")
		}
	})
}

func testNeverStarted(t *testing.T, b *bench) {
	x := b.machine(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "Wait before Start", x.Wait(gone), context.Canceled)
	if err := x.Stop(t.Context()); err != nil {
		t.Errorf("Stop before Start: %v", err)
	}
	_, err := x.Dial(t.Context(), testguest.PortEcho)
	wantErr(t, "Dial before Start", err, vm.ErrNotRunning)
	if l, err := x.Listen(testguest.PortReady); err == nil {
		l.Close()
		t.Error("second Listen on an open port succeeded")
	}
	if err := x.ready.Close(); err != nil {
		t.Errorf("Listener.Close: %v", err)
	}
	l, err := x.Listen(testguest.PortReady)
	if err != nil {
		t.Fatalf("Listen on a port that was closed: %v", err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	waited := make(chan error, 1)
	go func() { waited <- x.Wait(t.Context()) }()

	if err := x.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantErr(t, "Wait", <-waited, vm.ErrClosed)
	if err := <-accepted; err == nil {
		t.Error("Accept succeeded on a closed machine")
	}
	x.refuses(t)
	wantErr(t, "Wait after Close", x.waited(t, killTimeout), vm.ErrClosed)
}

// refuses checks that a closed machine does nothing more.
func (x *box) refuses(t *testing.T) {
	t.Helper()
	wantErr(t, "Start after Close", x.Start(t.Context()), vm.ErrClosed)
	wantErr(t, "Stop after Close", x.Stop(t.Context()), vm.ErrClosed)
	_, err := x.Dial(t.Context(), testguest.PortEcho)
	wantErr(t, "Dial after Close", err, vm.ErrClosed)
	_, err = x.Listen(2000)
	wantErr(t, "Listen after Close", err, vm.ErrClosed)
	if err := x.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func testStartGivenUp(t *testing.T, b *bench) {
	x := b.machine(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Start(gone); err == nil {
		t.Fatal("Start with a cancelled context succeeded")
	}
	if err := x.waited(t, killTimeout); err == nil {
		t.Error("Wait after a failed Start = nil")
	}
	wantErr(t, "second Start", x.Start(t.Context()), vm.ErrStarted)
	if err := x.Stop(t.Context()); err != nil {
		t.Errorf("Stop after a failed Start: %v", err)
	}
}

func testLife(t *testing.T, b *bench) {
	x := b.machine(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	starts := make(chan error, 2)
	for range cap(starts) {
		go func() { starts <- x.Start(ctx) }()
	}
	first, second := <-starts, <-starts
	if first != nil {
		first, second = second, first
	}
	if first != nil {
		t.Fatalf("Start: %v", first)
	}
	wantErr(t, "the other of two Starts", second, vm.ErrStarted)

	waits := make(chan error, 20)
	for range cap(waits) {
		go func() { waits <- x.Wait(t.Context()) }()
	}
	gone, cancelGone := context.WithCancel(t.Context())
	cancelGone()
	wantErr(t, "Wait given up", x.Wait(gone), context.Canceled)

	ready := x.called(t)
	wantErr(t, "Start while running", x.Start(ctx), vm.ErrStarted)
	if answer := x.order(t, "print the quick brown fox"); answer != "ok" {
		t.Errorf("order print: %s", answer)
	}
	x.console.waitFor(t, "the quick brown fox")

	x.stop(t, stopTimeout)
	for range cap(waits) {
		if err := <-waits; err != nil {
			t.Errorf("Wait after an orderly power-off = %v, want nil", err)
		}
	}
	broken(t, ready)
	_, err := x.Dial(t.Context(), testguest.PortEcho)
	wantErr(t, "Dial after the end", err, vm.ErrNotRunning)
	if _, err := x.ready.Accept(); err == nil {
		t.Error("Accept succeeded after the end")
	}
	x.stop(t, killTimeout)
	wantErr(t, "Start after the end", x.Start(t.Context()), vm.ErrStarted)
	if x.console.overlap {
		t.Error("console writes overlapped")
	}
}

func testPowerOff(t *testing.T, b *bench) {
	x, ready := b.booted(t)
	x.order(t, "poweroff")
	if err := x.waited(t, stopTimeout); err != nil {
		t.Errorf("Wait after the guest powered off = %v, want nil", err)
	}
	broken(t, ready)
	if err := x.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := x.waited(t, killTimeout); err != nil {
		t.Errorf("Wait after Close = %v, want nil: it powered off before", err)
	}
	x.refuses(t)
}

func testRestart(t *testing.T, b *bench) {
	x, ready := b.booted(t)
	own, err := x.Listen(2000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		echo := x.dial(t, testguest.PortEcho)
		x.order(t, "reboot")
		select {
		case <-x.resets:
		case <-time.After(stopTimeout):
			t.Fatalf("restart %d: Config.Reset was not called", i+1)
		}
		broken(t, ready)
		broken(t, echo)
		ready = x.called(t)
		x.drainResets() // a restart may be reported twice, but not once the guest runs again
		if answer := x.order(t, "dial 2000"); answer != "ok" {
			t.Fatalf("restart %d: the guest cannot dial a listener from before: %s", i+1, answer)
		}
		echoes(t, accept(t, own, killTimeout), []byte("again"))
	}
	select {
	case <-x.resets:
		t.Error("Config.Reset was called although the guest has not restarted")
	default:
	}
	if answer := x.order(t, "deaf"); answer != "ok" {
		t.Fatalf("order deaf: %s", answer)
	}
	begin := time.Now()
	x.stop(t, 300*time.Millisecond)
	if took := time.Since(begin); took > killTimeout {
		t.Errorf("Stop of a guest that does not listen took %v", took)
	}
	wantErr(t, "Wait after the plug was pulled", x.waited(t, killTimeout), vm.ErrKilled)
	broken(t, ready)
}

func testCloseRunning(t *testing.T, b *bench) {
	x, ready := b.booted(t)
	waited := make(chan error, 1)
	go func() { waited <- x.Wait(t.Context()) }()
	stopped := make(chan error, 1)
	x.order(t, "deaf")
	go func() { stopped <- x.Stop(t.Context()) }()
	accepted := make(chan error, 1)
	go func() {
		_, err := x.ready.Accept()
		accepted <- err
	}()
	closed := make(chan error, 3)
	for range cap(closed) {
		go func() { closed <- x.Close() }()
	}
	for range cap(closed) {
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	wantErr(t, "Wait", <-waited, vm.ErrKilled)
	if err := <-stopped; err != nil && !isClosed(err) {
		t.Errorf("Stop during Close = %v", err)
	}
	if err := <-accepted; err == nil {
		t.Error("Accept succeeded on a closed machine")
	}
	broken(t, ready)
	x.refuses(t)
	wantErr(t, "Wait after Close", x.waited(t, killTimeout), vm.ErrKilled)
}

// testCloseStarting closes machines at arbitrary points of their start.
func testCloseStarting(t *testing.T, b *bench) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		x := b.machine(t)
		started := make(chan error, 1)
		go func() { started <- x.Start(t.Context()) }()
		time.Sleep(after)
		if err := x.Close(); err != nil {
			t.Errorf("Close after %v: %v", after, err)
		}
		<-started // either way: it must return
		if err := x.waited(t, killTimeout); err == nil {
			t.Errorf("Wait after Close %v into the start = nil", after)
		}
		if entries, _ := os.ReadDir(x.dir); len(entries) > 0 {
			t.Errorf("Close after %v left %s", after, entries[0].Name())
		}
		if _, err := x.ready.Accept(); err == nil {
			t.Error("Accept succeeded on a closed machine")
		}
	}
}
