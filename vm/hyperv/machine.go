package hyperv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
	"github.com/berthvm/berth/vm/internal/hub"
	"github.com/berthvm/berth/vm/internal/life"
	"github.com/berthvm/berth/vm/internal/preflight"
	"github.com/berthvm/berth/vm/internal/vhdx"
)

const (
	// pressEvery is how often Stop presses the power button.
	pressEvery = 2 * time.Second
	// pullEvery is how often the plug is pulled again.
	pullEvery = 200 * time.Millisecond
	// dieWithin is how long a machine without a plug may take to be gone.
	dieWithin = 15 * time.Second
	// compactWithin bounds what an orderly end takes longer for the disks' sake.
	compactWithin = 5 * time.Second
)

// machine implements vm.Machine and vm.Pauser, vm.Saver and vm.Ballooner. Over its
// life it is one system of the service's after another, for each restart of the
// guest.
type machine struct {
	driver *Driver
	cfg    vm.Config
	dir    string
	user   string
	log    *slog.Logger
	life   *life.Life
	hub    *hub.Hub
	plug   *life.Plug
	frost  life.Frost

	mu        sync.Mutex     // guards what follows
	system    compute.System // nil before Start has made it
	announced bool           // the guest is about to restart
}

func newMachine(d *Driver, cfg vm.Config, dir, user string) *machine {
	log := d.log.With("machine", cfg.Name)
	return &machine{driver: d, cfg: cfg, dir: dir, user: user, log: log, life: life.New(), hub: hub.New(halves, log), plug: life.NewPlug()}
}

// halves is for sockets that close by halves already.
func halves(c net.Conn) hub.Stream { return c.(hub.Stream) }

// carrier is one system's sockets.
type carrier struct {
	platform platform
	machine  string
}

// Dial implements hub.Carrier.
func (c carrier) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return c.platform.dial(ctx, c.machine, port)
}

// Listen implements hub.Carrier.
func (c carrier) Listen(port uint32) (net.Listener, error) { return c.platform.listen(c.machine, port) }

// Start implements vm.Machine.
func (m *machine) Start(ctx context.Context) error { return m.begin(ctx, "") }

// Restore implements vm.Saver.
func (m *machine) Restore(ctx context.Context, path string) error { return m.begin(ctx, path) }

// begin makes the first system and has it boot, or go on from a saved state.
func (m *machine) begin(ctx context.Context, restore string) error {
	if err := m.life.Begin(); err != nil {
		return err
	}
	s, err := m.prepare(ctx, restore)
	if err != nil {
		return m.never(err, func() {})
	}
	system, err := m.create(ctx, s.design)
	if err != nil {
		return m.never(err, s.close)
	}
	booted := make(chan error, 1)
	go func() { booted <- system.Do(context.WithoutCancel(ctx), compute.Order{Op: compute.OpStart}) }()
	started := make(chan struct{})
	go m.supervise(s, system, started)
	select {
	case err = <-booted:
	case <-m.plug.Pulled():
		err = vm.ErrKilled
	case <-ctx.Done():
		err = ctx.Err()
	}
	close(started)
	if err == nil {
		if err = m.life.Running(); err == nil {
			return nil
		}
	}
	m.plug.Pull(err)
	if err := m.gone(); err != nil {
		return err
	}
	return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, m.life.Wait(context.Background()))
}

// never ends a machine that has no system.
func (m *machine) never(err error, free func()) error {
	if reason, out := m.plug.Out(); out {
		err = reason
	}
	m.hub.Close()
	free()
	m.removeImages()
	m.life.End(err)
	return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, err)
}

// surroundings are what serves the machine while it lives.
type surroundings struct {
	design  compute.Design
	console net.Listener
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
}

// close ends them. The hub is closed.
func (s *surroundings) close() {
	s.cancel()
	s.console.Close()
	s.tasks.Wait()
}

// prepare makes the disks' images and everything that the guest will look for.
func (m *machine) prepare(ctx context.Context, restore string) (*surroundings, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := m.design()
	d.Restore = restore
	for i, disk := range m.cfg.Disks {
		path := disk.Path
		if disk.ReadOnly {
			path = imageName(m.dir, i)
			if err := convert(disk.Path, path); err != nil {
				return nil, fmt.Errorf("disk %s: %w", disk.Path, err)
			}
		}
		d.Disks = append(d.Disks, compute.Disk{Path: path, ReadOnly: disk.ReadOnly})
	}
	console, err := m.driver.platform.pipe(d.Console)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	life, cancel := context.WithCancel(context.Background()) // the machine's
	s := &surroundings{design: d, console: console, cancel: cancel}
	if err := m.serve(life, s); err != nil {
		m.hub.Close()
		s.close()
		return nil, err
	}
	return s, nil
}

// convert makes an image of a raw disk.
func convert(raw, path string) error {
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return vhdx.Convert(path, f, info.Size())
}

// design describes the machine, without its disks and its identity.
func (m *machine) design() compute.Design {
	return compute.Design{
		Name: m.cfg.Name, CPUs: m.cfg.CPUs, MemoryMiB: m.cfg.MemoryMiB &^ 1,
		Kernel: m.cfg.Kernel, Initrd: m.cfg.Initrd, Cmdline: strings.Join(m.cmdline(), " "),
		Console: compute.PipePrefix + newID() + "-console",
		User:    m.user,
	}
}

// cmdline is the kernel's: what the hypervisor needs, what the guest lacks, and what
// cfg says, which can override it.
func (m *machine) cmdline() []string {
	args := []string{
		"console=ttyS0,115200", "8250_core.nr_uarts=1", "8250_core.skip_txen_test=1",
		"pmtmr=0", // there is none to look for
		"pci=off",
		fmt.Sprintf("nr_cpus=%d", m.cfg.CPUs),
		"hv_utils.timesync_implicit=1",          // also after the host has slept
		"page_reporting.page_reporting_order=9", // hint at free memory in pieces of 2 MiB
		devices.HyperV, devices.Restart,
	}
	if m.cfg.Network != nil {
		args = append(args, devices.Cable, devices.MAC(m.cfg.Network.MAC()))
	}
	var serials []string
	for _, d := range m.cfg.Disks {
		serials = append(serials, d.Serial)
	}
	if serials != nil {
		args = append(args, devices.Disks(serials))
	}
	return append(args, m.cfg.Cmdline...)
}

// newID is a random GUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// serve takes the console, and what stands in for devices, until the machine ends.
func (m *machine) serve(ctx context.Context, s *surroundings) error {
	restarts, err := m.hub.Listen(devices.RestartPort)
	if err != nil {
		return err
	}
	s.tasks.Go(func() { m.watchRestarts(restarts) })
	if m.cfg.Network != nil {
		cables, err := m.hub.Listen(devices.CablePort)
		if err != nil {
			return err
		}
		s.tasks.Go(func() { m.serveCables(ctx, cables) })
	}
	s.tasks.Go(func() { m.serveConsole(ctx, s.console) })
	return nil
}

// watchRestarts takes the guest's announcements.
func (m *machine) watchRestarts(l *hub.Listener) {
	for {
		c, err := l.Take()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.announced = true
		m.mu.Unlock()
		c.Close() // which the guest has been waiting for
	}
}

// serveCables takes the guest's network cable, one for each boot.
func (m *machine) serveCables(ctx context.Context, l *hub.Listener) {
	for {
		c, err := l.Take()
		if err != nil {
			return
		}
		if err := m.cfg.Network.ServeStream(ctx, c); err != nil && ctx.Err() == nil {
			m.log.Warn("network cable", "error", err)
		}
	}
}

// serveConsole takes the serial port's output, of one system after the other.
func (m *machine) serveConsole(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		if err := preflight.Console(m.cfg.Console, c); err != nil && ctx.Err() == nil && !errors.Is(err, io.ErrClosedPipe) {
			m.log.Warn("console lost", "error", err)
		}
		stop()
		c.Close()
	}
}

// create makes a system that does not run, whose sockets are the machine's.
func (m *machine) create(ctx context.Context, d compute.Design) (compute.System, error) {
	d.ID = newID()
	system, err := m.driver.service.Create(ctx, d)
	if err != nil {
		return nil, err
	}
	// The guest dials before all else, so the listeners have to be there first.
	if err := m.hub.Attach(carrier{m.driver.platform, system.RuntimeID()}); err != nil {
		return nil, errors.Join(err, system.Close())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.system, m.announced = system, false
	return system, nil
}

// supervise follows the systems until the last has ended, and ends the machine.
func (m *machine) supervise(s *surroundings, system compute.System, started <-chan struct{}) {
	var reason error
	for {
		var again bool
		again, reason = m.follow(system)
		if err := system.Close(); err != nil {
			m.log.Warn("cannot free the virtual machine", "error", err)
		}
		if _, out := m.plug.Out(); out || !again {
			break
		}
		m.log.Info("machine restarted")
		m.hub.Reset(nil)
		if m.cfg.Reset != nil {
			m.cfg.Reset()
		}
		var err error
		if system, err = m.restart(s); err != nil {
			reason = fmt.Errorf("cannot restart the machine: %w", err)
			break
		}
	}
	<-started
	if verdict, out := m.plug.Out(); out {
		reason = verdict
	}
	m.hub.Close()
	s.close()
	m.removeImages()
	if reason == nil {
		m.compact()
	}
	m.log.Info("machine ended", "reason", reason)
	m.life.End(reason)
}

// restart makes the next system and starts it.
func (m *machine) restart(s *surroundings) (compute.System, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.plug.Pulled():
			cancel()
		case <-ctx.Done():
		}
	}()
	d := s.design
	d.Restore = ""
	system, err := m.create(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := system.Do(ctx, compute.Order{Op: compute.OpStart}); err != nil {
		return nil, errors.Join(err, system.Close())
	}
	return system, nil
}

// follow follows one system until it is off. It says whether the guest wants to be
// started again, or why it does not.
func (m *machine) follow(system compute.System) (again bool, reason error) {
	ended := make(chan struct{})
	var pulling sync.WaitGroup
	defer pulling.Wait()
	defer close(ended)
	pulling.Go(func() {
		asked := false
		m.plug.Until(ended, pullEvery, func() {
			if !asked {
				asked = true
				m.terminate(system)
				return
			}
			system.Close() // the system ends with it, also one that never ran
		})
	})
	crashed := false
	for e := range system.Events() {
		m.log.Debug("machine event", "event", e)
		crashed = crashed || e.Crashed
		if !e.Exited {
			continue
		}
		m.mu.Lock()
		announced := m.announced
		m.mu.Unlock()
		switch {
		case e.Reset, announced && e.Failure == "" && !e.Forced:
			return true, nil
		case crashed:
			return false, errors.New("the guest's kernel panicked: see the machine's log")
		case e.Failure != "":
			return false, errors.New(e.Failure)
		case e.Forced:
			return false, errors.New("the virtual machine was ended from outside, or Windows is shutting down")
		}
		return false, nil
	}
	return false, errors.New("the service that runs the virtual machine is gone")
}

func (m *machine) terminate(system compute.System) {
	ctx, cancel := context.WithTimeout(context.Background(), dieWithin)
	defer cancel()
	if err := system.Do(ctx, compute.Order{Op: compute.OpTerminate}); err != nil {
		m.log.Debug("cannot pull the plug", "error", err)
	}
}

func (m *machine) removeImages() {
	if err := removeImages(m.dir); err != nil {
		m.log.Warn("cannot remove the disks' images", "error", err)
	}
}

// compact gives back the space that the guest has discarded.
func (m *machine) compact() {
	ctx, cancel := context.WithTimeout(context.Background(), compactWithin)
	defer cancel()
	for _, disk := range m.cfg.Disks {
		if disk.ReadOnly {
			continue
		}
		freed, err := compact(ctx, disk.Path)
		if err != nil {
			m.log.Warn("the disk keeps the space that the guest has freed", "path", disk.Path, "error", err)
		} else if freed > 0 {
			m.log.Info("disk compacted", "path", disk.Path, "bytes", freed)
		}
	}
}

func compact(ctx context.Context, path string) (int64, error) {
	image, err := vhdx.Open(path)
	if err != nil {
		return 0, err
	}
	defer image.Close()
	return image.Compact(ctx)
}

// gone waits until a machine that was told to end has ended, and all that belongs
// to it.
func (m *machine) gone() error {
	return m.life.Gone(dieWithin+compactWithin, "Hyper-V does not end the machine although it was told to")
}

// Stop implements vm.Machine. Its power button is Hyper-V's integration service,
// which the guest hears once its modules are loaded.
func (m *machine) Stop(ctx context.Context) error {
	return m.life.SwitchOff(ctx, m.plug.Pull, pressEvery, m.press, m.gone)
}

func (m *machine) press(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pressEvery)
	defer cancel()
	if err := m.do(ctx, compute.Order{Op: compute.OpShutDown}); err != nil && ctx.Err() == nil {
		m.log.Debug("power button", "error", err)
	}
}

// do has the current system carry out an order.
func (m *machine) do(ctx context.Context, o compute.Order) error {
	if err := m.life.Up(); err != nil {
		return err
	}
	m.mu.Lock()
	system := m.system
	m.mu.Unlock()
	return system.Do(ctx, o)
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) error { return m.life.Wait(ctx) }

// Close implements vm.Machine.
func (m *machine) Close() error {
	m.life.Close()
	m.plug.Pull(vm.ErrKilled)
	m.hub.Close()
	return m.gone()
}

// Dial implements vm.Transport.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.life.Dial(ctx, port, m.hub.Dial)
}

// Listen implements vm.Transport.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	if err := m.life.Listenable(); err != nil {
		return nil, err
	}
	switch port {
	case devices.RestartPort, devices.CablePort:
		return nil, fmt.Errorf("listen on vsock port %d: it is the driver's own", port)
	}
	l, err := m.hub.Listen(port)
	if err != nil {
		return nil, err
	}
	return l, nil
}
