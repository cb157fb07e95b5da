package vz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/hub"
	"github.com/berthvm/berth/vm/internal/life"
	"github.com/berthvm/berth/vm/internal/preflight"
)

const (
	// pressEvery is how often Stop presses the power button.
	pressEvery = 2 * time.Second
	// pullEvery is how often the plug is pulled again: a machine that is just
	// starting refuses.
	pullEvery = 100 * time.Millisecond
	// dieWithin is how long a machine without a plug may take to be gone.
	dieWithin = 10 * time.Second
)

// machine implements vm.Machine and vm.Pauser, vm.Saver and vm.Ballooner.
type machine struct {
	driver *Driver
	cfg    vm.Config
	log    *slog.Logger
	life   *life.Life
	hub    *hub.Hub
	plug   *life.Plug
	frost  life.Frost

	mu   sync.Mutex
	inst instance // nil before Start has made it
}

func newMachine(d *Driver, cfg vm.Config) *machine {
	log := d.log.With("machine", cfg.Name)
	return &machine{driver: d, cfg: cfg, log: log, life: life.New(), hub: hub.New(frame, log), plug: life.NewPlug()}
}

// Start implements vm.Machine.
func (m *machine) Start(ctx context.Context) error {
	return m.begin(ctx, false, func(inst instance) error { return inst.start() })
}

// Restore implements vm.Saver.
func (m *machine) Restore(ctx context.Context, path string) error {
	return m.begin(ctx, true, func(inst instance) error {
		if err := inst.restore(path); err != nil {
			return fmt.Errorf("restore %s: %w", path, err)
		}
		return inst.resume()
	})
}

// begin makes the framework's machine and has it boot, or go on.
func (m *machine) begin(ctx context.Context, restored bool, boot func(instance) error) error {
	if err := m.life.Begin(); err != nil {
		return err
	}
	c, inst, err := m.create(ctx)
	if err != nil {
		m.hub.Close()
		m.life.End(err)
		return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, err)
	}
	m.mu.Lock()
	m.inst = inst
	m.mu.Unlock()
	join := m.serve(c, restored)
	failed := make(chan error, 1)
	booted := make(chan struct{})
	var bootErr error // once booted is closed
	go func() {
		defer close(booted)
		if bootErr = boot(inst); bootErr != nil {
			failed <- bootErr
		}
	}()
	go m.supervise(inst, failed, booted, func() {
		inst.release()
		c.close()
		join()
	})
	select {
	case <-booted:
		if bootErr == nil && m.life.Running() == nil {
			return nil
		}
	case <-ctx.Done():
		m.plug.Pull(ctx.Err())
	}
	if err := m.gone(); err != nil {
		return err
	}
	return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, m.life.Wait(context.Background()))
}

// cables are what lies between the framework's machine and this process. The
// framework has the numbers of its ends only, so they stay open until it is gone.
type cables struct {
	network    *net.UnixConn // nil without a network
	theirs     []*os.File
	console    *os.File
	consoleIn  *os.File // our end: nothing is ever written, and no end-of-file comes
	consoleOut *os.File // theirs
}

func (c *cables) close() {
	if c.network != nil {
		c.network.Close()
	}
	for _, f := range c.theirs {
		f.Close()
	}
	if c.consoleIn != nil {
		c.consoleIn.Close()
	}
	if c.consoleOut != nil {
		c.consoleOut.Close() // its reader ends with that
	}
}

// create makes the framework's machine, which listens but does not run.
func (m *machine) create(ctx context.Context) (_ *cables, _ instance, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	c := &cables{}
	defer func() {
		if err != nil {
			c.close()
			if c.console != nil {
				c.console.Close()
			}
		}
	}()
	s := m.spec()
	if err := c.open(&s, m.cfg.Network); err != nil {
		return nil, nil, err
	}
	inst, err := m.driver.fw.create(s)
	if err != nil {
		return nil, nil, err
	}
	// The guest dials it before all else, so it has to be there first.
	if err := m.hub.Attach(carrier{inst, m.driver.patient, m.hub.Done()}); err != nil {
		m.hub.Close()
		inst.release()
		return nil, nil, err
	}
	return c, inst, nil
}

func (c *cables) open(s *spec, network vm.Network) error {
	in, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	c.theirs, c.consoleIn = append(c.theirs, in), ours
	if c.console, c.consoleOut, err = os.Pipe(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	s.consoleIn, s.consoleOut = in, c.consoleOut
	if network == nil {
		return nil
	}
	conn, theirs, err := datagramPair()
	if err != nil {
		return err
	}
	c.network, c.theirs = conn, append(c.theirs, theirs)
	s.network, s.mac = theirs, network.MAC()
	return nil
}

// spec describes the machine to the framework.
func (m *machine) spec() spec {
	o := m.driver.opts
	parameters := []string{"console=hvc0", framed.Param}
	if o.Rosetta {
		parameters = append(parameters, devices.Rosetta)
	}
	s := spec{
		cpus:        uint(m.cfg.CPUs),
		memoryBytes: uint64(m.cfg.MemoryMiB) << 20,
		kernel:      m.cfg.Kernel,
		initrd:      m.cfg.Initrd,
		cmdline:     strings.Join(append(parameters, m.cfg.Cmdline...), " "),
		disks:       m.cfg.Disks,
		shares:      m.cfg.Shares,
		sync:        SyncFull,
		rosetta:     o.Rosetta,
		nested:      o.Nested,
	}
	if o.Sync != "" {
		s.sync = o.Sync
	}
	if o.StateDir != "" {
		s.identifier = filepath.Join(o.StateDir, "vz-identifier")
	}
	return s
}

// serve carries what goes through the cables, and returns what waits until
// nothing does any more, once they are closed.
func (m *machine) serve(c *cables, restored bool) (join func()) {
	var tasks sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background()) // the machine's life
	boots, err := m.hub.Listen(framed.BootPort)
	if err != nil {
		m.plug.Pull(err)
	} else {
		tasks.Go(func() { m.watchBoots(boots, restored) })
	}
	tasks.Go(func() {
		defer c.console.Close()
		if err := preflight.Console(m.cfg.Console, c.console); err != nil {
			m.log.Warn("console lost", "error", err)
		}
	})
	if m.cfg.Network != nil {
		tasks.Go(func() {
			if err := m.cfg.Network.ServeDatagram(ctx, c.network); err != nil && ctx.Err() == nil {
				m.log.Warn("network device", "error", err)
			}
		})
	}
	return func() {
		cancel()
		tasks.Wait()
	}
}

// watchBoots takes the guest's calls at the beginning of each boot. All but the
// first mean that it has restarted itself.
func (m *machine) watchBoots(l *hub.Listener, restored bool) {
	for again := restored; ; again = true {
		c, err := l.Take()
		if err != nil {
			return
		}
		if again {
			m.log.Info("machine restarted")
			m.hub.Reset(c)
			if m.cfg.Reset != nil {
				m.cfg.Reset()
			}
		}
		if err := c.CloseWrite(); err != nil { // which the guest has been waiting for
			m.log.Debug("the guest's boot call", "error", err)
		}
		c.Close()
	}
}

// supervise waits for the end of the framework's machine, and ends this one.
func (m *machine) supervise(inst instance, failed <-chan error, booted <-chan struct{}, free func()) {
	ended := make(chan struct{})
	var pulling sync.WaitGroup
	pulling.Go(func() {
		m.plug.Until(ended, pullEvery, func() {
			if err := inst.stop(); err != nil {
				m.log.Debug("cannot pull the plug", "error", err)
			}
		})
	})
	reason := m.follow(inst, failed)
	close(ended)
	pulling.Wait()
	<-booted
	m.hub.Close()
	free()
	if verdict, out := m.plug.Out(); out {
		reason = verdict
	}
	m.log.Info("machine ended", "reason", reason)
	m.life.End(reason)
}

// follow follows the machine's states until it is off, and says why it is.
func (m *machine) follow(inst instance, failed <-chan error) error {
	up := false // it is off, too, before it was started
	for {
		select {
		case err := <-failed:
			return err
		case s := <-inst.states():
			m.log.Debug("machine state", "state", s)
			switch {
			case !s.off():
				up = true
			case up && s == stateError:
				select { // a start that failed says why
				case err := <-failed:
					return err
				case <-time.After(pullEvery):
				}
				return errors.New("Virtualization.framework has stopped the machine after an internal error: see Console.app")
			case up:
				return nil
			}
		}
	}
}

func (m *machine) gone() error {
	return m.life.Gone(dieWithin, "Virtualization.framework does not end the machine although it was told to")
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	return m.life.SwitchOff(ctx, m.plug.Pull, pressEvery, m.press, m.gone)
}

// press presses the power button. The framework answers at once.
func (m *machine) press(context.Context) {
	if m.life.Up() != nil {
		return
	}
	if err := m.instance().requestStop(); err != nil {
		m.log.Debug("power button", "error", err)
	}
}

func (m *machine) instance() instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inst
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
	if port == framed.BootPort {
		return nil, fmt.Errorf("listen on vsock port %d: it is the driver's own", port)
	}
	l, err := m.hub.Listen(port)
	if err != nil {
		return nil, err
	}
	return l, nil
}
