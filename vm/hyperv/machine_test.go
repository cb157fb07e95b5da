package hyperv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
	"github.com/berthvm/berth/vm/internal/testguest"
	"github.com/berthvm/berth/vm/internal/vhdx"
	"github.com/berthvm/berth/vm/vmfake"
	"github.com/berthvm/berth/vm/vmtest"
)

// fake is a Windows, a compute.Service and a platform, whose machines are
// vm/vmfake's. As with the real one a machine ends when its guest resets, without
// saying that this is why.
type fake struct {
	createErr error
	failing   compute.Op // an order that fails

	mu      sync.Mutex
	systems []*fakeSystem
	pipes   map[string]*pipe
	inner   *vmfake.Driver
}

func newFake() *fake {
	return &fake{pipes: map[string]*pipe{}, inner: vmfake.New(vmfake.Options{Guest: boot})}
}

func (*fake) Probe(context.Context) (string, error) { return "fake", nil }

func (*fake) user() (string, error) { return "S-1-5-21-1", nil }

// pipe is a named pipe's server.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipe) Close() error { p.once.Do(func() { close(p.closed) }); return nil }
func (*pipe) Addr() net.Addr { return nil }

func (f *fake) pipe(name string) (net.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pipes[name] = &pipe{conns: make(chan net.Conn), closed: make(chan struct{})}
	return f.pipes[name], nil
}

func (f *fake) machine(id string) (vm.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.systems {
		if s.RuntimeID() == id {
			return s.machine, nil
		}
	}
	return nil, fmt.Errorf("no machine %s", id)
}

func (f *fake) dial(ctx context.Context, id string, port uint32) (net.Conn, error) {
	m, err := f.machine(id)
	if err != nil {
		return nil, err
	}
	return m.Dial(ctx, port)
}

func (f *fake) listen(id string, port uint32) (net.Listener, error) {
	m, err := f.machine(id)
	if err != nil {
		return nil, err
	}
	return m.Listen(port)
}

func (f *fake) last() *fakeSystem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.systems[len(f.systems)-1]
}

// Create implements compute.Service.
func (f *fake) Create(ctx context.Context, d compute.Design) (compute.System, error) {
	if f.createErr != nil {
		return nil, f.createErr
	}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	console := f.pipes[d.Console]
	if console == nil {
		return nil, errors.New("the console's pipe is not there")
	}
	near, far := net.Pipe()
	select {
	case console.conns <- near:
	case <-console.closed:
		return nil, net.ErrClosed
	}
	s := &fakeSystem{fake: f, design: d, console: far, events: make(chan compute.Event, 4), plug: make(chan struct{})}
	m, err := f.inner.New(ctx, vm.Config{Name: "inner", CPUs: d.CPUs, MemoryMiB: d.MemoryMiB, Kernel: d.Kernel,
		Cmdline: []string{d.Cmdline}, Console: far}, os.TempDir())
	if err != nil {
		return nil, err
	}
	s.machine = m
	f.systems = append(f.systems, s)
	return s, nil
}

type fakeSystem struct {
	fake    *fake
	design  compute.Design
	machine vm.Machine
	console net.Conn
	events  chan compute.Event
	tasks   sync.WaitGroup
	plug    chan struct{} // closed when it is pulled
	pull    sync.Once

	mu     sync.Mutex
	orders []string
	saved  bool
	over   bool
}

func (s *fakeSystem) RuntimeID() string            { return s.design.ID }
func (s *fakeSystem) Events() <-chan compute.Event { return s.events }

// boot is one boot of the guest, which does as PID 1 does.
func boot(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
	cmdline := hw.Config().Cmdline[0]
	if devices.Has(cmdline, devices.Cable) {
		plugCable(ctx, hw)
	}
	exit, err := testguest.Run(ctx, hw, testguest.Hooks{Button: hw.PowerButton(), Console: hw.Console()})
	switch {
	case err != nil, exit == testguest.Fault:
		return vmfake.Fault
	case exit == testguest.Reboot && devices.Has(cmdline, devices.Restart):
		c, err := hw.Dial(ctx, devices.RestartPort)
		if err != nil {
			return vmfake.Fault
		}
		io.Copy(io.Discard, c)
		c.Close()
	}
	return vmfake.PowerOff
}

// plugCable sends one frame and has what comes back on the console.
func plugCable(ctx context.Context, hw *vmfake.Hardware) {
	c, err := hw.Dial(ctx, devices.CablePort)
	if err != nil {
		return
	}
	go func() {
		defer c.Close()
		devices.Send(c, strings.NewReader("frame"))
		devices.Receive(hw.Console(), c)
	}()
}

func (s *fakeSystem) Do(ctx context.Context, o compute.Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	s.orders = append(s.orders, string(o.Op))
	s.mu.Unlock()
	if o.Op == s.fake.failing {
		return errors.New("not this one")
	}
	switch o.Op {
	case compute.OpStart:
		return s.start(ctx)
	case compute.OpShutDown:
		s.tasks.Go(func() { s.machine.Stop(context.Background()) }) // ends with the machine
	case compute.OpSave: // it is there, paused, until its plug is pulled
		s.mu.Lock()
		s.saved = true
		s.mu.Unlock()
		return s.machine.(vm.Saver).Save(ctx, o.Path)
	case compute.OpTerminate:
		s.pull.Do(func() { close(s.plug) })
		return s.machine.Close()
	}
	return nil
}

func (s *fakeSystem) start(ctx context.Context) error {
	start := s.machine.Start
	if path := s.design.Restore; path != "" {
		start = func(ctx context.Context) error { return s.machine.(vm.Saver).Restore(ctx, path) }
	}
	if err := start(ctx); err != nil {
		return err
	}
	s.tasks.Go(func() {
		err := s.machine.Wait(context.Background())
		s.mu.Lock()
		saved := s.saved
		s.mu.Unlock()
		if saved {
			<-s.plug
		}
		switch {
		case errors.Is(err, vmfake.ErrFault):
			s.tell(compute.Event{Crashed: true})
			s.tell(compute.Event{Exited: true})
		case err != nil:
			s.tell(compute.Event{Exited: true, Forced: true})
		default:
			s.tell(compute.Event{Exited: true})
		}
	})
	return nil
}

func (s *fakeSystem) tell(e compute.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.events <- e
	if e.Exited {
		s.over = true
		close(s.events)
	}
}

func (s *fakeSystem) Close() error {
	s.pull.Do(func() { close(s.plug) })
	err := s.machine.Close()
	s.tell(compute.Event{Exited: true, Forced: true})
	s.tasks.Wait()
	s.console.Close()
	return err
}

func (s *fakeSystem) given() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.orders, " ")
}

func driver(f *fake) *Driver { return newDriver(Options{Service: f}, f) }

func config(t *testing.T) vm.Config {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Config{Name: "fake", CPUs: 1, MemoryMiB: 256, Kernel: kernel}
}

func TestContract(t *testing.T) {
	cfg := config(t)
	root := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(root, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data.vhdx")
	if err := driver(newFake()).MakeDisk(data, 1<<30); err != nil {
		t.Fatal(err)
	}
	cfg.Disks = []vm.Disk{{Path: root, ReadOnly: true, Serial: "root"}, {Path: data, Serial: "data"}}
	vmtest.Run(t, driver(newFake()), cfg)
}

func started(t *testing.T, f *fake, cfg vm.Config) *machine {
	t.Helper()
	m, err := driver(f).New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m.(*machine)
}

func TestDesign(t *testing.T) {
	f, cfg := newFake(), config(t)
	cfg.MemoryMiB, cfg.Cmdline, cfg.Network = 1025, []string{"quiet"}, cable{}
	disk := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("x"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Disks = []vm.Disk{{Path: disk, ReadOnly: true, Serial: "berth-root"}}
	m := started(t, f, cfg)
	d := f.last().design
	if d.MemoryMiB != 1024 || d.User != "S-1-5-21-1" {
		t.Errorf("%+v", d)
	}
	for _, want := range []string{devices.HyperV, devices.Cable, "berth.mac=02:00:00:00:00:01", "berth.disks=berth-root", devices.Restart, "nr_cpus=1"} {
		if !devices.Has(d.Cmdline, want) {
			t.Errorf("command line %q lacks %q", d.Cmdline, want)
		}
	}
	if !strings.HasSuffix(d.Cmdline, " quiet") {
		t.Errorf("command line %q: the configuration's comes last", d.Cmdline)
	}
	image, err := vhdx.Open(d.Disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5001)
	image.ReadAt(got, 0)
	image.Close()
	if !bytes.Equal(got, append(bytes.Repeat([]byte("x"), 5000), 0)) {
		t.Error("the image of the raw disk has other contents")
	}
	m.Close()
	if _, err := os.Stat(d.Disks[0].Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image is there after Close: %v", err)
	}
}

// cable is a network that answers each frame.
type cable struct{}

func (cable) MAC() net.HardwareAddr                         { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }
func (cable) ServeDatagram(context.Context, net.Conn) error { panic("not this one") }
func (cable) ServeStream(ctx context.Context, c net.Conn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	return err
}

// lines is a console to read from.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func TestCable(t *testing.T) {
	f, cfg, console := newFake(), config(t), &lines{}
	cfg.Network, cfg.Console = cable{}, console
	resets := make(chan struct{}, 1)
	cfg.Reset = func() { resets <- struct{}{} }
	m := started(t, f, cfg)
	arrives := func(n int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); console.count("frame") < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d frames came back, want %d", console.count("frame"), n)
			}
		}
	}
	arrives(1)
	order(t, m, "reboot")
	<-resets
	arrives(2) // by a new cable
	if _, err := m.Listen(devices.CablePort); err == nil {
		t.Error("the driver's port can be taken")
	}
}

// order tells the guest what to do.
func order(t *testing.T, m vm.Machine, what string) {
	t.Helper()
	for {
		c, err := m.Dial(t.Context(), testguest.PortOrder)
		if err != nil { // it is not there yet
			time.Sleep(time.Millisecond)
			continue
		}
		defer c.Close()
		fmt.Fprintln(c, what)
		return
	}
}

func TestStartFails(t *testing.T) {
	refused := errors.New("access denied")
	for _, name := range []string{"create", "start"} {
		f := newFake()
		if name == "create" {
			f.createErr = refused
		} else {
			f.failing = compute.OpStart
		}
		m, err := driver(f).New(t.Context(), config(t), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(t.Context()); err == nil || name == "create" && !errors.Is(err, refused) {
			t.Errorf("%s: Start() = %v", name, err)
		}
		if err := m.Wait(t.Context()); err == nil {
			t.Errorf("%s: Wait() = nil", name)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCrash(t *testing.T) {
	m := started(t, newFake(), config(t))
	order(t, m, "fault")
	if err := m.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("Wait() = %v", err)
	}
}

func TestServiceGone(t *testing.T) {
	f := newFake()
	m := started(t, f, config(t))
	s := f.last()
	s.mu.Lock()
	s.over = true
	close(s.events)
	s.mu.Unlock()
	if err := m.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("Wait() = %v", err)
	}
}

func TestSave(t *testing.T) {
	f := newFake()
	m := started(t, f, config(t))
	path := filepath.Join(t.TempDir(), "state")
	f.failing = compute.OpSave
	if err := m.Save(t.Context(), path); err == nil {
		t.Error("Save of what cannot be saved works")
	}
	f.failing = ""
	if err := errors.Join(m.Pause(t.Context()), m.Pause(t.Context()), m.Resume(t.Context()), m.SetMemory(t.Context(), 128)); err != nil {
		t.Error(err)
	}
	if m.SetMemory(t.Context(), 257) == nil {
		t.Error("more memory than there is")
	}
	if err := m.Save(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context()); err != nil {
		t.Errorf("Wait after Save = %v, want an orderly end", err)
	}
	if got, want := f.last().given(), "start pause save resume pause resume memory pause save terminate"; got != want {
		t.Errorf("orders: %s\nwant:   %s", got, want)
	}
	again, err := driver(f).New(t.Context(), config(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.(vm.Saver).Restore(t.Context(), path); err != nil || f.last().design.Restore != path {
		t.Errorf("Restore = %v, of %q", err, f.last().design.Restore)
	}
}

func TestMakeDisk(t *testing.T) {
	d := driver(newFake())
	path := filepath.Join(t.TempDir(), "data"+d.DiskSuffix())
	for _, size := range []int64{1 << 30, 1 << 30, 3 << 30} {
		if err := d.MakeDisk(path, size); err != nil {
			t.Fatal(err)
		}
		image, err := vhdx.Open(path)
		if err != nil || image.Size() != size {
			t.Fatalf("a disk of %d bytes: %v", size, err)
		}
		image.Close()
	}
	if err := d.MakeDisk(path, 1<<30); err == nil || !strings.Contains(err.Error(), "cannot shrink") {
		t.Errorf("a smaller disk: %v", err)
	}
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.MakeDisk(path, 1<<30) == nil {
		t.Error("a file that is no image is taken for one")
	}
}

func TestNewRefuses(t *testing.T) {
	cfg := config(t)
	cfg.Disks = []vm.Disk{{Path: cfg.Kernel}} // raw, and written to
	if _, err := driver(newFake()).New(t.Context(), cfg, t.TempDir()); err == nil {
		t.Error("a raw disk that is written to is taken")
	}
	if _, err := New(Options{}).Probe(t.Context()); err != nil && !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("Probe() = %v, want %v", err, vm.ErrUnavailable)
	}
}
