package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/life"
	"github.com/berthvm/berth/vm/internal/preflight"
)

const (
	// pressEvery is how often Stop presses the power button.
	pressEvery = 2 * time.Second
	// retryEvery is how often a write that found the host's disk full is retried.
	retryEvery = 2 * time.Second
	// complainEvery is how often the log says that the host's disk is full.
	complainEvery = time.Minute
	// dieWithin is how long a killed QEMU may take to be gone. The kernel needs
	// milliseconds, unless a device of the host hangs.
	dieWithin = 10 * time.Second
)

// machine implements vm.Machine and vm.Pauser, vm.Saver and vm.Ballooner.
type machine struct {
	cfg     vm.Config
	host    *host
	arch    string
	dir     string
	log     *slog.Logger
	life    *life.Life
	layout  layout
	device  streams
	serial  bool    // device is a serial port
	packets backend // the network device; nil where QEMU has one that sends frames
	shares  []backend
	locks   []*os.File    // the disks, locked
	booted  chan struct{} // closed when Start has set mon, or given up

	mu       sync.Mutex
	proc     *process // nil before Start has launched it
	mon      *monitor // nil before QEMU has answered
	verdict  error    // why it has to end, where QEMU's exit does not tell
	shutdown string   // the reason QEMU gave for shutting down
	panicked bool     // the guest's kernel said so
	retrying bool     // a write that found the host's disk full will be tried again
	paused   bool     // by Pause
	saved    bool     // by Save, which ends QEMU then

	complained time.Time      // when the full disk was last logged
	later      sync.WaitGroup // what events have set off
	reset      time.Time      // of the last one, by QEMU's clock

	closing sync.Once
}

// newMachine makes sure of what cfg names and of dir.
func (d *Driver) newMachine(h *host, cfg vm.Config, dir string) (vm.Machine, error) {
	if err := preflight.Files(cfg, dir); err != nil {
		return nil, err
	}
	log := d.log.With("machine", cfg.Name)
	shares, err := d.folders(cfg.Shares, log)
	if err != nil {
		return nil, err
	}
	if err := endLeftover(dir, log); err != nil {
		return nil, err
	}
	locks, err := lockDisks(cfg.Disks)
	if err != nil {
		return nil, err
	}
	return &machine{
		cfg: cfg, host: h, arch: d.opts.Arch, dir: dir, log: log, life: life.New(), locks: locks, shares: shares,
		booted: make(chan struct{}),
		layout: d.layout, device: d.newStreams(log), serial: d.serial(), packets: d.newPackets(cfg.Network, log),
	}, nil
}

// folders makes a device for each share. Without vhost-user there is none.
func (d *Driver) folders(shares []vm.Share, log *slog.Logger) ([]backend, error) {
	var all []backend
	for _, s := range shares {
		if d.serial() {
			return nil, fmt.Errorf("share %q: machines of this driver have no device for shared folders here", s.Tag)
		}
		f, err := newFolder(s, log)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// lockDisks takes a lock on every disk, which other programs of this kind
// respect; QEMU takes its own besides.
func lockDisks(disks []vm.Disk) (locks []*os.File, err error) {
	defer func() {
		if err != nil {
			unlock(locks)
		}
	}()
	for _, d := range disks {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		f, err := os.OpenFile(d.Path, flags, 0)
		if err != nil {
			return locks, fmt.Errorf("disk: %w", err)
		}
		locks = append(locks, f)
		if err := lockDisk(f, d.ReadOnly); err != nil {
			return locks, fmt.Errorf("disk %s is in use by another machine: %w", d.Path, err)
		}
	}
	return locks, nil
}

func unlock(locks []*os.File) {
	for _, f := range locks {
		f.Close()
	}
}

// Start implements vm.Machine.
func (m *machine) Start(ctx context.Context) error { return m.begin(ctx, "") }

// begin has the machine boot, or go on from a saved state.
func (m *machine) begin(ctx context.Context, restore string) error {
	if err := m.life.Begin(); err != nil {
		return err
	}
	proc, err := m.launch(ctx, restore != "")
	if err != nil {
		m.device.Close()
		m.life.End(err)
		return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, err)
	}
	err = m.boot(ctx, proc, restore)
	close(m.booted)
	if err == nil {
		err = m.life.Running()
	}
	if err == nil {
		return nil
	}
	patience := time.Second
	if ctx.Err() != nil {
		patience = 0
	}
	select {
	case <-proc.done: // QEMU's own words are the better reason than that it hung up
	case <-time.After(patience):
		m.fail(err)
	}
	if err := m.gone(); err != nil {
		return err
	}
	return fmt.Errorf("cannot start machine %q: %w", m.cfg.Name, m.life.Wait(context.Background()))
}

// launch runs QEMU, whose CPUs do not run yet.
func (m *machine) launch(ctx context.Context, restore bool) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	network := m.layout
	switch {
	case m.cfg.Network == nil:
		network = nil
	case m.packets != nil: // QEMU does not believe that a descriptor it inherits can pass others
		network = named{}
	}
	c, err := openCables(m.layout, network, m.dir, len(m.shares))
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verdict != nil { // Stop or Close came before there was anything to kill
		c.closeTheirs()
		c.closeOurs()
		return nil, m.verdict
	}
	s := spec{cfg: m.cfg, goos: runtime.GOOS, arch: m.arch, accel: m.host.accel, cpu: m.host.cpu, tscKHz: counterKHz(), serial: m.serial, packets: m.packets != nil, sandbox: m.host.program.sandbox, restore: restore, plugs: c.plugs}
	m.log.Debug("starting QEMU", "path", m.host.program.path, "args", s.argv())
	proc, err := launch(m.host.program.path, s.argv(), c.theirs, m.dir)
	c.closeTheirs()
	if err != nil {
		c.closeOurs()
		return nil, err
	}
	m.proc = proc
	go m.supervise(proc, m.serve(proc, c))
	return proc, nil
}

// boot sets QEMU's CPUs going, after it has loaded the state to restore, if any.
func (m *machine) boot(ctx context.Context, proc *process, restore string) error {
	socket := filepath.Join(m.dir, monitorSocket)
	mon, err := openMonitor(ctx, socket, proc.done, m.event)
	os.Remove(socket)
	m.mu.Lock()
	m.mon = mon
	m.mu.Unlock()
	if err == nil && restore != "" {
		err = m.load(ctx, mon, restore)
	}
	if err == nil {
		err = mon.run(ctx, "cont")
	}
	if ctx.Err() != nil {
		return fmt.Errorf("QEMU does not answer: %w", ctx.Err())
	}
	return err
}

// serve carries what goes through the cables, and returns what waits until
// nothing does any more, which is soon after QEMU has ended.
func (m *machine) serve(proc *process, c *cables) (join func()) {
	var tasks sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background()) // QEMU's life
	tasks.Go(func() {
		err := m.plugStreams(ctx, c)
		select {
		case <-proc.done: // it hung up because it ended
		case <-time.After(time.Second):
			m.fail(fmt.Errorf("the device with the streams has ended before QEMU: %w", cmp.Or(err, io.EOF)))
		}
	})
	tasks.Go(func() {
		if err := m.readConsole(c.console); err != nil && ctx.Err() == nil {
			m.log.Warn("console lost", "error", err)
		}
	})
	if m.cfg.Network != nil {
		tasks.Go(func() {
			conn, err := c.net.open()
			switch {
			case err == nil && m.packets != nil:
				err = m.packets.Serve(ctx, conn)
			case err == nil:
				err = m.cfg.Network.ServeStream(ctx, conn)
			}
			if err != nil && ctx.Err() == nil {
				m.log.Warn("network device", "error", err)
			}
		})
	}
	for i, share := range m.shares {
		tasks.Go(func() {
			conn, err := c.shares[i].open()
			if err == nil {
				err = share.Serve(ctx, conn)
			}
			// The machine goes on without the folder: killing it would lose more.
			if err != nil && ctx.Err() == nil {
				m.log.Error("shared folder lost", "tag", m.cfg.Shares[i].Tag, "error", err)
			}
		})
	}
	return func() {
		cancel()
		c.abandon() // the others end with QEMU's last words
		tasks.Wait()
		c.closeOurs()
	}
}

func (m *machine) plugStreams(ctx context.Context, c *cables) error {
	conn, err := c.streams.open()
	if err != nil {
		return err
	}
	return m.device.Serve(ctx, conn)
}

// readConsole copies the console to its end.
func (m *machine) readConsole(c *cable) error {
	conn, err := c.open()
	if err != nil {
		return err
	}
	return preflight.Console(m.cfg.Console, conn)
}

// supervise waits for QEMU's end, and ends the machine with it.
func (m *machine) supervise(proc *process, join func()) {
	stderr, status := proc.wait()
	<-m.booted // soon: nobody answers Start any more
	m.mu.Lock()
	mon := m.mon
	m.mu.Unlock()
	if mon != nil {
		mon.wait()
		m.later.Wait() // no event adds one any more
	}
	m.device.Close()
	join()
	os.Remove(filepath.Join(m.dir, pidFile))
	err := m.reason(status, stderr)
	m.log.Info("machine ended", "reason", err)
	m.life.End(err)
}

// reason tells why the machine ended.
func (m *machine) reason(status error, stderr string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if stderr != "" {
		stderr = ": " + stderr
	}
	switch {
	case m.saved:
		return nil
	case m.verdict != nil:
		return m.verdict
	case status != nil && m.panicked:
		return fmt.Errorf("the guest's kernel panicked; QEMU: %w%s", status, stderr)
	case status != nil:
		return fmt.Errorf("QEMU failed: %w%s", status, stderr)
	case m.shutdown == "host-signal", m.shutdown == "host-qmp-quit", m.shutdown == "host-error":
		return fmt.Errorf("QEMU was ended from outside (%s)%s", m.shutdown, stderr)
	case m.shutdown == "guest-panic":
		return errors.New("the guest's kernel panicked: see the machine's log")
	}
	return nil
}

// event handles one of QEMU's.
func (m *machine) event(e qmp.Event) {
	m.log.Debug("QEMU event", "event", e.Event, "data", e.Data)
	switch e.Event {
	case "RESET":
		at := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
		m.device.Reset(at)
		if m.restarted(at) {
			m.log.Info("machine restarted")
			if m.cfg.Reset != nil {
				m.cfg.Reset()
			}
		}
	case "SHUTDOWN":
		reason, _ := e.Data["reason"].(string)
		m.mu.Lock()
		m.shutdown = reason
		m.mu.Unlock()
	case "STOP":
		m.mu.Lock()
		m.later.Go(m.stopped)
		m.mu.Unlock()
	case "BLOCK_IO_ERROR":
		if e.Data["nospace"] == true && e.Data["action"] == "stop" {
			m.diskFull()
		}
	case "GUEST_PANICKED":
		m.log.Warn("the guest's kernel panicked")
		m.mu.Lock()
		m.panicked = true
		m.mu.Unlock()
	}
}

// stopped looks why QEMU has stopped the CPUs, and ends a machine whose code the
// accelerator cannot run: nothing sets it going again. The trials of the accelerator
// to come know of it.
func (m *machine) stopped() {
	m.mu.Lock()
	mon := m.mon
	m.mu.Unlock()
	if mon == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), retryEvery)
	defer cancel()
	var status struct{ Status string }
	if err := mon.call(ctx, "query-status", nil, &status); err != nil || status.Status != "internal-error" {
		return
	}
	name := strings.ToUpper(m.host.accel)
	m.host.distrust("it fails at some of a guest's instructions")
	m.fail(fmt.Errorf("%s cannot run the guest: it failed at one of its instructions; try again, or set \"acceleration: none\" in the machine's configuration", name))
}

// diskFull handles QEMU's pause of a machine whose write found no space on the
// host: the write is tried again, by going on, until it succeeds. The guest
// notices no more than a slow disk.
func (m *machine) diskFull() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retrying || m.mon == nil {
		return
	}
	m.retrying = true
	if time.Since(m.complained) > complainEvery {
		m.complained = time.Now()
		m.log.Error("the host's disk is full and the machine waits: free some space, then it goes on by itself")
	}
	m.later.Go(m.goOn)
}

// goOn sets the CPUs going again, in a while.
func (m *machine) goOn() {
	select {
	case <-m.proc.done:
		return
	case <-time.After(retryEvery):
	}
	m.mu.Lock()
	m.retrying = false
	paused := m.paused
	m.mu.Unlock()
	if paused {
		return // Resume tries it
	}
	ctx, cancel := context.WithTimeout(context.Background(), retryEvery)
	defer cancel()
	if err := m.mon.run(ctx, "cont"); err != nil {
		m.log.Debug("going on after a full disk", "error", err)
	}
}

// sameReset is how close resets are that belong to one restart of the guest.
const sameReset = 300 * time.Millisecond

// restarted notes a reset and tells whether it is a restart's first: a kernel
// tries its ways to reset one after the other, and SeaBIOS resets once more to
// get rid of what it had changed. All that is over long before the next kernel
// has a vsock.
func (m *machine) restarted(when time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := when.Sub(m.reset) > sameReset
	m.reset = when
	return first
}

// fail kills QEMU, for a reason that Wait will return unless there is an
// earlier one. It waits for nothing.
func (m *machine) fail(reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verdict == nil {
		m.verdict = reason
	}
	if m.proc != nil {
		m.proc.kill()
	}
}

func (m *machine) gone() error {
	return m.life.Gone(dieWithin, "QEMU does not end although it was killed: look for a device of this host that hangs")
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	return m.life.SwitchOff(ctx, m.fail, pressEvery, m.press, m.gone)
}

// press presses the power button.
func (m *machine) press(ctx context.Context) {
	m.mu.Lock()
	mon := m.mon
	m.mu.Unlock()
	if mon == nil {
		return
	}
	if err := mon.run(ctx, "system_powerdown"); err != nil && ctx.Err() == nil {
		m.log.Debug("power button", "error", err)
	}
}

// Pause implements vm.Pauser.
func (m *machine) Pause(ctx context.Context) error { return m.freeze(ctx, true) }

// Resume implements vm.Pauser.
func (m *machine) Resume(ctx context.Context) error { return m.freeze(ctx, false) }

func (m *machine) freeze(ctx context.Context, pause bool) error {
	if err := m.life.Up(); err != nil {
		return err
	}
	m.mu.Lock()
	m.paused = pause // before goOn looks
	mon := m.mon
	m.mu.Unlock()
	command, what := "cont", "resume"
	if pause {
		command, what = "stop", "pause"
	}
	if err := mon.run(ctx, command); err != nil {
		return fmt.Errorf("cannot %s machine %q: %w", what, m.cfg.Name, err)
	}
	return nil
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) error { return m.life.Wait(ctx) }

// Close implements vm.Machine.
func (m *machine) Close() error {
	m.life.Close()
	m.fail(vm.ErrKilled)
	m.device.Close()
	err := m.gone()
	m.closing.Do(func() { unlock(m.locks) })
	return err
}

// Dial implements vm.Transport.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.life.Dial(ctx, port, m.device.Dial)
}

// Listen implements vm.Transport.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	if err := m.life.Listenable(); err != nil {
		return nil, err
	}
	return m.device.Listen(port)
}
