// Package vmfake is a driver without a hypervisor: its guest is a Go function
// in the same process. It is a real implementation of vm.Driver, not a mock: it
// passes the acceptance suite of vm/vmtest, so that what holds for it in a unit
// test of the host's side holds for a machine too.
//
// Every boot calls the Guest with a Hardware, whose methods are the guest's side
// of the machine. The guest owns no more than that: when its context ends, the
// plug was pulled, and it returns soon (a machine's Close waits for it).
package vmfake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/life"
)

// Exit is how a guest's boot ended.
type Exit int

// The ways a guest ends.
const (
	PowerOff Exit = iota // orderly: Wait returns nil
	Reboot               // Config.Reset is called, then Guest once more
	Fault                // the machine breaks, as a hypervisor that crashes does: Wait returns ErrFault
)

// ErrFault is what Wait returns after Fault.
var ErrFault = errors.New("the fake machine broke down")

// Guest is the program that a fake machine runs, called once per boot. ctx ends
// when the plug is pulled; what it returns after that does not count.
type Guest func(ctx context.Context, hw *Hardware) Exit

// Options configures a Driver. The zero value makes machines whose guest does
// nothing but wait for its power button.
type Options struct {
	Guest Guest   // what the machines run
	Caps  vm.Caps // what Probe finds; an empty Driver means a plain description

	ProbeErr error // Probe and New fail with it
	StartErr error // Start fails with it
	SaveErr  error // Save fails with it
}

// Driver implements vm.Driver.
type Driver struct {
	opts Options

	mu    sync.Mutex
	saved map[string]*supply // guests by their file's content
}

// New returns a driver.
func New(opts Options) *Driver {
	if opts.Guest == nil {
		opts.Guest = func(ctx context.Context, hw *Hardware) Exit {
			select {
			case <-ctx.Done():
			case <-hw.PowerButton():
			}
			return PowerOff
		}
	}
	if opts.Caps.Driver == "" {
		opts.Caps = vm.Caps{Driver: "fake", Version: "fake 1.0", Acceleration: "none", Arch: runtime.GOARCH}
	}
	return &Driver{opts: opts, saved: map[string]*supply{}}
}

// Probe implements vm.Driver.
func (d *Driver) Probe(ctx context.Context) (vm.Caps, error) {
	if err := ctx.Err(); err != nil {
		return vm.Caps{}, err
	}
	return d.opts.Caps, d.opts.ProbeErr
}

// New implements vm.Driver. It looks at the files that cfg names, as a real
// driver does, and writes nothing to dir.
func (d *Driver) New(ctx context.Context, cfg vm.Config, dir string) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d.opts.ProbeErr != nil {
		return nil, d.opts.ProbeErr
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("machine directory: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("machine directory: %s is not a directory", dir)
	}
	files := []string{cfg.Kernel}
	if cfg.Initrd != "" {
		files = append(files, cfg.Initrd)
	}
	for _, d := range cfg.Disks {
		files = append(files, d.Path)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("cannot use machine %q: %w", cfg.Name, err)
		}
	}
	return &Machine{driver: d, opts: d.opts, cfg: cfg, bus: newBus(), life: life.New()}, nil
}

// Machine implements vm.Machine, vm.Pauser and vm.Saver.
type Machine struct {
	driver *Driver
	opts   Options
	cfg    vm.Config
	bus    *bus
	life   *life.Life
	paused atomic.Bool

	mu     sync.Mutex
	supply *supply // what its guest runs on; nil before Start
}

// supply is what one guest runs on: a machine, and after Save and Restore another.
type supply struct {
	cut    context.Context // ends when the plug is pulled: the power, not a call's context
	pull   context.CancelFunc
	button chan struct{}
	off    chan struct{} // closed when the guest has returned for good

	machine atomic.Pointer[Machine]
	held    *bus // of a saved guest: its listeners
}

// Start implements vm.Machine.
func (m *Machine) Start(ctx context.Context) error {
	return m.begin(ctx, func() (*supply, error) {
		cut, pull := context.WithCancel(context.Background())
		s := &supply{cut: cut, pull: pull, button: make(chan struct{}, 1), off: make(chan struct{})}
		s.machine.Store(m)
		go s.run()
		return s, nil
	})
}

// begin makes the machine the one of a guest that runs.
func (m *Machine) begin(ctx context.Context, guest func() (*supply, error)) error {
	if err := m.life.Begin(); err != nil {
		return err
	}
	err := ctx.Err()
	if err == nil {
		err = m.opts.StartErr
	}
	if err != nil {
		m.end(err)
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.Running(); err != nil {
		return err
	}
	if m.supply, err = guest(); err != nil {
		m.end(err)
	}
	return err
}

// run boots the guest until it is off.
func (s *supply) run() {
	defer close(s.off)
	for {
		exit := s.machine.Load().opts.Guest(s.cut, &Hardware{s})
		m := s.machine.Load()
		switch {
		case s.cut.Err() != nil:
			m.end(vm.ErrKilled)
			return
		case exit == Fault:
			m.end(ErrFault)
			return
		case exit == PowerOff:
			m.end(nil)
			return
		}
		m.bus.reset()
		if m.cfg.Reset != nil {
			m.cfg.Reset()
		}
	}
}

func (m *Machine) end(err error) {
	m.bus.close()
	m.life.End(err)
}

// unplug ends the machine at once.
func (m *Machine) unplug() {
	if s := m.guest(); s != nil {
		s.pull()
	}
	if m.life.State() != life.Created {
		m.end(vm.ErrKilled)
	}
}

// join waits until the guest has returned, if it ever ran.
func (m *Machine) join() {
	if s := m.guest(); s != nil {
		<-s.off
	}
}

// guest is what the machine's guest runs on; nil while there is none here.
func (m *Machine) guest() *supply {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.supply
}

// Stop implements vm.Machine.
func (m *Machine) Stop(ctx context.Context) error {
	if err := m.life.Open(); err != nil {
		return err
	}
	if m.life.State() == life.Created {
		return nil
	}
	if s := m.guest(); s != nil {
		select {
		case s.button <- struct{}{}:
		default:
		}
	}
	select {
	case <-m.life.Done():
	case <-ctx.Done():
		m.unplug()
	}
	m.join()
	return nil
}

// Pause implements vm.Pauser: the fake guest notices nothing of it.
func (m *Machine) Pause(ctx context.Context) error { return m.freeze(true) }

// Resume implements vm.Pauser.
func (m *Machine) Resume(ctx context.Context) error { return m.freeze(false) }

func (m *Machine) freeze(paused bool) error {
	if err := m.life.Up(); err != nil {
		return err
	}
	m.paused.Store(paused)
	return nil
}

// Paused tells whether the machine is.
func (m *Machine) Paused() bool { return m.paused.Load() }

// Wait implements vm.Machine.
func (m *Machine) Wait(ctx context.Context) error { return m.life.Wait(ctx) }

// Close implements vm.Machine.
func (m *Machine) Close() error {
	m.life.Close()
	m.unplug()
	m.bus.close()
	m.join()
	return nil
}

// Dial implements vm.Transport.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := m.life.Up(); err != nil {
		return nil, err
	}
	return m.bus.dial(ctx, hostCID, Addr{CID: guestCID, Port: port})
}

// Listen implements vm.Transport.
func (m *Machine) Listen(port uint32) (net.Listener, error) {
	if err := m.life.Listenable(); err != nil {
		return nil, err
	}
	return m.bus.listen(Addr{CID: hostCID, Port: port})
}

// Hardware is the machine as its guest sees it, for one boot. Its methods are
// safe for concurrent use.
type Hardware struct{ supply *supply }

func (h *Hardware) machine() *Machine { return h.supply.machine.Load() }

// Dial connects to a port of the host.
func (h *Hardware) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return h.machine().bus.dial(ctx, guestCID, Addr{CID: hostCID, Port: port})
}

// Listen takes the host's connections to a port of the guest.
func (h *Hardware) Listen(port uint32) (net.Listener, error) {
	return h.machine().bus.listen(Addr{CID: guestCID, Port: port})
}

// PowerButton yields a value when the button was pressed.
func (h *Hardware) PowerButton() <-chan struct{} { return h.supply.button }

// Config is what the machine was made with.
func (h *Hardware) Config() vm.Config { return h.machine().cfg }

// Console takes the guest's console output. Writes must be serial.
func (h *Hardware) Console() io.Writer {
	return screen{h}
}

// screen writes to the console of the machine that the guest is in now.
type screen struct{ h *Hardware }

// Write implements io.Writer.
func (s screen) Write(p []byte) (int, error) {
	if w := s.h.machine().cfg.Console; w != nil {
		return w.Write(p)
	}
	return len(p), nil
}
