//go:build unix

package vz

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
	"github.com/berthvm/berth/vm/vmfake"
	"github.com/berthvm/berth/vm/vmtest"
)

// fake is a framework whose machines are vm/vmfake's, made as awkward as the real
// ones: streams close whole only, states come by a channel, and restarts are not
// told.
type fake struct {
	deaf      uint32 // a port whose connect never answers
	startErr  error
	saveErr   error
	createErr error

	once  sync.Once
	inner *vmfake.Driver

	mu   sync.Mutex
	last *fakeBox
}

func (*fake) probe() (string, error)   { return "fake", nil }
func (*fake) limits() limits           { return limits{1, 8, 1 << 20, 1 << 40} }
func (*fake) checkKernel(string) error { return nil }

func (f *fake) create(s spec) (instance, error) {
	if f.createErr != nil {
		return nil, f.createErr
	}
	b := &fakeBox{fake: f, spec: s, notes: make(chan state, 16), gone: make(chan struct{})}
	f.once.Do(func() { f.inner = vmfake.New(vmfake.Options{Guest: boot}) })
	m, err := f.inner.New(context.Background(), vm.Config{Name: "inner", CPUs: 1, MemoryMiB: 256, Kernel: s.kernel, Console: s.consoleOut}, os.TempDir())
	if err != nil {
		return nil, err
	}
	b.machine = m
	f.mu.Lock()
	f.last = b
	f.mu.Unlock()
	return b, nil
}

type fakeBox struct {
	fake     *fake
	spec     spec
	machine  vm.Machine
	notes    chan state
	gone     chan struct{} // closed by release
	presses  sync.WaitGroup
	memory   uint64
	calls    []string
	released sync.Once
}

// boot is one boot of the guest, which does what PID 1 does before all else.
func boot(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
	c, err := hw.Dial(ctx, framed.BootPort)
	if err != nil {
		return vmfake.Fault
	}
	io.ReadAll(framed.New(c))
	c.Close()
	exit, err := testguest.Run(ctx, framedGuest{hw}, testguest.Hooks{Button: hw.PowerButton(), Console: hw.Console()})
	switch {
	case err != nil, exit == testguest.Fault:
		return vmfake.Fault
	case exit == testguest.Reboot:
		return vmfake.Reboot
	}
	return vmfake.PowerOff
}

// framedGuest is the guest's side of framed streams.
type framedGuest struct{ hw *vmfake.Hardware }

func (g framedGuest) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := g.hw.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return framed.New(c), nil
}

func (g framedGuest) Listen(port uint32) (net.Listener, error) {
	l, err := g.hw.Listen(port)
	if err != nil {
		return nil, err
	}
	return framed.Listener{Listener: l}, nil
}

func (b *fakeBox) start() error {
	if b.fake.startErr != nil {
		b.notes <- stateStarting
		b.notes <- stateError
		return b.fake.startErr
	}
	b.notes <- stateStarting
	return b.run(b.machine.Start(context.Background()))
}

// run reports a machine that has started, if it has.
func (b *fakeBox) run(err error) error {
	if err != nil {
		return err
	}
	b.notes <- stateRunning
	b.presses.Go(func() {
		switch err := b.machine.Wait(context.Background()); {
		case errors.Is(err, vmfake.ErrFault):
			b.notes <- stateError
		default:
			b.notes <- stateStopping
			b.notes <- stateStopped
		}
	})
	return nil
}

func (b *fakeBox) stop() error { return b.machine.Close() }

func (b *fakeBox) requestStop() error {
	b.presses.Go(func() { b.machine.Stop(context.Background()) }) // ends with the machine
	return nil
}

func (b *fakeBox) note(call string) error {
	b.calls = append(b.calls, call)
	return nil
}

func (b *fakeBox) pause() error           { return b.note("pause") }
func (b *fakeBox) resume() error          { return b.note("resume") }
func (b *fakeBox) canSave() error         { return b.fake.saveErr }
func (b *fakeBox) setMemory(bytes uint64) { b.memory = bytes }
func (b *fakeBox) states() <-chan state   { return b.notes }
func (b *fakeBox) save(path string) error {
	b.note("save " + path)
	return b.machine.(vm.Saver).Save(context.Background(), path)
}
func (b *fakeBox) restore(path string) error {
	b.note("restore " + path)
	return b.run(b.machine.(vm.Saver).Restore(context.Background(), path))
}
func (b *fakeBox) release() {
	b.released.Do(func() { close(b.gone); b.machine.Close(); b.presses.Wait() })
}

// whole hides CloseWrite.
type whole struct{ net.Conn }

func (b *fakeBox) connect(port uint32) (net.Conn, error) {
	if port == b.fake.deaf && port != 0 {
		<-b.gone
		return nil, errors.New("the machine has ended")
	}
	c, err := b.machine.Dial(context.Background(), port)
	if err != nil {
		return nil, err
	}
	return whole{c}, nil
}

func (b *fakeBox) listen(port uint32) (net.Listener, error) { return b.machine.Listen(port) }

func config(t *testing.T) vm.Config {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "Image")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Config{Name: "fake", CPUs: 1, MemoryMiB: 256, Kernel: kernel}
}

func TestContract(t *testing.T) {
	vmtest.Run(t, newDriver(Options{}, &fake{}), config(t))
}

func started(t *testing.T, f *fake, o Options, cfg vm.Config) *machine {
	t.Helper()
	d := newDriver(o, f)
	d.patient = 20 * time.Millisecond
	m, err := d.New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m.(*machine)
}

func TestDialUnanswered(t *testing.T) {
	f := &fake{deaf: 77}
	m := started(t, f, Options{}, config(t))
	if _, err := m.Dial(t.Context(), 77); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("Dial of a port that never answers = %v, want %v", err, syscall.ETIMEDOUT)
	}
	m.hub.Attach(carrier{m.instance(), time.Hour, m.hub.Done()})
	ended := make(chan error, 1)
	go func() { _, err := m.Dial(t.Context(), 77); ended <- err }()
	time.Sleep(20 * time.Millisecond)
	m.Close()
	if err := <-ended; !errors.Is(err, vm.ErrClosed) {
		t.Errorf("Dial during Close = %v, want %v", err, vm.ErrClosed)
	}
}

func TestStartFails(t *testing.T) {
	broken := errors.New("no such entitlement")
	for name, f := range map[string]*fake{"start": {startErr: broken}, "create": {createErr: broken}} {
		t.Run(name, func(t *testing.T) {
			m, err := newDriver(Options{}, f).New(t.Context(), config(t), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Start(t.Context()); !errors.Is(err, broken) {
				t.Errorf("Start() = %v, want %v", err, broken)
			}
			if err := m.Wait(t.Context()); !errors.Is(err, broken) {
				t.Errorf("Wait() = %v, want %v", err, broken)
			}
		})
	}
}

func TestSave(t *testing.T) {
	f := &fake{saveErr: errors.New("not this one")}
	m := started(t, f, Options{}, config(t))
	path := filepath.Join(t.TempDir(), "s")
	if err := m.Save(t.Context(), path); !errors.Is(err, f.saveErr) {
		t.Errorf("Save of what cannot be saved = %v", err)
	}
	f.saveErr = nil
	if err := errors.Join(m.Pause(t.Context()), m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
		t.Error(err)
	}
	if err := m.Save(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context()); err != nil {
		t.Errorf("Wait after Save = %v, want an orderly end", err)
	}
	if got := strings.Join(f.last.calls, ", "); got != "pause, resume, pause, save "+path {
		t.Errorf("the framework's calls: %s", got)
	}
	if err := m.Pause(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Pause after the end = %v", err)
	}
	again, err := newDriver(Options{}, f).New(t.Context(), config(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.(vm.Saver).Restore(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.last.calls, ", "); got != "restore "+path+", resume" {
		t.Errorf("the framework's calls: %s", got)
	}
}

func TestSetMemory(t *testing.T) {
	f := &fake{}
	m := started(t, f, Options{}, config(t))
	if err := m.SetMemory(t.Context(), 128); err != nil || f.last.memory != 128<<20 {
		t.Errorf("SetMemory(128) = %v, %d bytes", err, f.last.memory)
	}
	for _, mib := range []int{-1, 0, 257} {
		if m.SetMemory(t.Context(), mib) == nil {
			t.Errorf("SetMemory(%d) works", mib)
		}
	}
}

// cable is a network that answers each frame.
type cable struct{}

func (cable) MAC() net.HardwareAddr                       { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }
func (cable) ServeStream(context.Context, net.Conn) error { panic("not this one") }
func (cable) ServeDatagram(ctx context.Context, c net.Conn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for buf := make([]byte, 1<<16); ; {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// TestNetwork plays the framework: it has the number of its end only.
func TestNetwork(t *testing.T) {
	cfg, f := config(t), &fake{}
	cfg.Network = cable{}
	m := started(t, f, Options{}, cfg)
	for range 3 {
		runtime.GC() // must not take the framework's end
	}
	s := f.last.spec
	if s.mac.String() != "02:00:00:00:00:01" {
		t.Errorf("MAC address %v", s.mac)
	}
	fd := int(s.network.Fd())
	for _, size := range []int{60, 1514, 65000} {
		if _, err := syscall.Write(fd, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<16)
		if n, err := syscall.Read(fd, buf); n != size || err != nil {
			t.Errorf("a frame of %d bytes came back with %d, %v", size, n, err)
		}
	}
	m.Close()
	if _, err := s.network.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the framework's end is open after Close: %v", err)
	}
}
