package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

const (
	// lostGrace is how long a guest whose PID 1 has left may take to be reset
	// or to switch off before it counts as dead.
	lostGrace = 10 * time.Second
	// plugTimeout bounds a stop that the guest's agent cannot help with.
	plugTimeout = 5 * time.Second
)

// live is the machine's life, from the image to the closed sockets.
func (d *daemon) live(ctx context.Context) error {
	start, cancel := context.WithTimeout(ctx, d.o.StartTimeout)
	defer cancel()
	m, cleanup, err := d.launch(start)
	defer func() {
		close(d.deaf)
		undo(cleanup)
	}()
	if err != nil {
		return d.explain(ctx, start, err)
	}
	return d.watch(ctx, start, m)
}

// explain replaces the error of a launch that was cut short by the reason.
func (d *daemon) explain(life, start context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(life), errCanceled):
		return errCanceled
	case life.Err() != nil: // by stop or a signal
		return nil
	case start.Err() != nil:
		return d.timeout()
	}
	return err
}

func (d *daemon) timeout() error {
	s := d.progress.get()
	return &Error{api.KindTimeout, fmt.Errorf("not up after %s, in phase %q: see \"berth logs\"; a slow host needs a longer start-timeout in %s",
		d.o.StartTimeout, s.Phase, s.Config)}
}

// phase runs one step of the launch.
func (d *daemon) phase(ctx context.Context, name string, step func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	end := d.progress.begin(name)
	err := step()
	end(err)
	return err
}

// launch does all up to the moment when the guest's CPUs run. The cleanup is to
// be run backwards whatever it returns.
func (d *daemon) launch(ctx context.Context) (m vm.Machine, cleanup []func(), err error) {
	var image Image
	// The image is hashed, which takes a core a moment, beside all else.
	prepare, both := errgroup.WithContext(ctx)
	prepare.Go(func() error {
		return d.phase(both, "image", func() (err error) {
			image, err = d.o.Image(both)
			return err
		})
	})
	prepare.Go(func() error { return d.prepareHost(both) })
	err = prepare.Wait()
	if d.network != nil {
		cleanup = append(cleanup, func() { d.network.Close() })
	}
	cleanup = append(cleanup, d.closeFolders)
	if err != nil {
		return nil, cleanup, err
	}
	m, powering, err := d.powerOn(ctx, image)
	return m, append(cleanup, powering...), err
}

// assemble makes the machine and all that its guest will look for.
func (d *daemon) assemble(ctx context.Context, image Image) (m vm.Machine, cleanup []func(), err error) {
	if err := d.phase(ctx, "machine", func() (err error) {
		m, err = d.newMachine(ctx, image)
		return err
	}); err != nil {
		return nil, nil, err
	}
	d.setMachine(m)
	cleanup = append(cleanup, func() {
		d.setMachine(nil)
		if err := m.Close(); err != nil {
			d.log.Error("cannot free all of the virtual machine", "error", err)
		}
		os.RemoveAll(d.o.Machine.VMDir())
	})
	serving, err := d.serveGuest(m)
	cleanup = append(cleanup, serving...)
	if err != nil {
		return nil, cleanup, err
	}
	d.hello.reset()
	return m, cleanup, nil
}

// prepareHost does what a machine needs besides its image.
func (d *daemon) prepareHost(ctx context.Context) error {
	if err := d.phase(ctx, "disk", d.prepareDisk); err != nil {
		return err
	}
	err := d.phase(ctx, "cable", func() (err error) {
		d.network, err = d.o.Network(ctx)
		return err
	})
	if err == nil {
		err = d.phase(ctx, "hypervisor", func() (err error) {
			d.caps, err = d.o.Driver.Probe(ctx)
			return err
		})
	}
	if err == nil && d.o.Folders != nil {
		err = d.phase(ctx, "folders", func() (err error) {
			d.folders, err = d.o.Folders(ctx, d.caps)
			return err
		})
	}
	if err != nil {
		return err
	}
	d.lend(d.network.Guest())
	return nil
}

func (d *daemon) prepareDisk() error {
	if err := d.o.Machine.CheckSpace(); err != nil {
		return err
	}
	if err := d.o.Machine.RemoveTemporary(); err != nil {
		d.log.Warn("cannot remove temporary files", "error", err)
	}
	keys, err := d.o.Machine.Keys()
	if err != nil {
		return err
	}
	d.keys = keys
	format, _ := d.o.Driver.(vm.DiskMaker)
	d.disk, err = d.o.Machine.PrepareDisk(int64(d.o.Config.Disk), format)
	return err
}

func (d *daemon) newMachine(ctx context.Context, image Image) (vm.Machine, error) {
	caps := d.caps
	if image.Arch != "" && caps.Arch != "" && image.Arch != caps.Arch {
		return nil, fmt.Errorf("the guest image is for %s and this host runs %s: reinstall Berth", image.Arch, caps.Arch)
	}
	d.progress.update(func(s *api.Status) {
		s.Driver, s.Hypervisor, s.Acceleration, s.Reason, s.Arch = caps.Driver, caps.Version, caps.Acceleration, caps.Reason, caps.Arch
	})
	if err := os.MkdirAll(d.o.Machine.VMDir(), 0o700); err != nil {
		return nil, err
	}
	return d.o.Driver.New(ctx, vm.Config{
		Name:      d.o.Machine.Name,
		CPUs:      d.o.Config.CPUs,
		MemoryMiB: int(d.o.Config.Memory >> 20),
		Kernel:    image.Kernel,
		Initrd:    image.Initrd,
		Cmdline:   image.Cmdline,
		Disks: []vm.Disk{
			{Path: image.Root, ReadOnly: true, Serial: SerialRoot},
			{Path: d.disk, Serial: SerialData},
		},
		Network: d.network,
		Shares:  d.shares(),
		Console: d.console,
		Reset: func() {
			d.hello.reset()
			select {
			case d.resets <- struct{}{}:
			default:
			}
		},
	}, d.o.Machine.VMDir())
}

// serveGuest opens what the guest dials and what leads into it.
func (d *daemon) serveGuest(m vm.Machine) (cleanup []func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	serve := func(l net.Listener, task func(net.Listener)) {
		tasks.Go(func() { task(l) })
		cleanup = append(cleanup, func() { l.Close() })
	}
	// In the order they run, which is backwards: close listeners, cut streams, join.
	cleanup = append(cleanup, tasks.Wait, cancel)

	l, err := m.Listen(wire.PortHelloHost)
	if err != nil {
		return cleanup, fmt.Errorf("cannot listen for the guest: %w", err)
	}
	cleanup = append(cleanup, d.hello.reset) // ends the current stream, which serve waits for
	serve(l, d.hello.serve)
	if l, err = m.Listen(wire.PortLoopbackHost); err != nil {
		return cleanup, fmt.Errorf("cannot listen for the guest: %w", err)
	}
	serve(l, func(l net.Listener) { d.o.Loopback(ctx, l, d.hello.secret) })
	if d.o.Streams != nil {
		if l, err = m.Listen(wire.PortFolderHost); err != nil {
			return cleanup, fmt.Errorf("cannot listen for the guest: %w", err)
		}
		serve(l, func(l net.Listener) { d.o.Streams(ctx, l, d.hello.secret, d.folderStream) })
	}
	if d.o.Publish != nil {
		if l, err = m.Listen(wire.PortPublishHost); err != nil {
			return cleanup, fmt.Errorf("cannot listen for the guest: %w", err)
		}
		serve(l, func(l net.Listener) {
			d.o.Publish.Serve(ctx, l, d.hello.secret, d.dialer(m, wire.PortPortal), d.direct())
		})
	}
	for address, port := range map[string]uint32{
		d.o.Machine.DockerAddress():  wire.PortDocker,
		d.o.Machine.SSHAddress():     wire.PortSSH,
		d.o.Machine.ControlAddress(): wire.PortControl,
	} {
		if l, err = d.o.Listen(address); err != nil {
			return cleanup, fmt.Errorf("cannot open a socket: %w", err)
		}
		serve(l, func(l net.Listener) { d.o.Forward(ctx, l, d.dialer(m, port)) })
	}
	return cleanup, nil
}

// dialer leads to a port of the guest, and holds connections that come before
// the engine answers until it does.
func (d *daemon) dialer(m vm.Machine, port uint32) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		if err := d.awaken(ctx); err != nil {
			return nil, err
		}
		return m.Dial(ctx, port)
	}
}

// direct leads to a port of a container by the machine's network, likewise; it is nil
// where there is no such way.
func (d *daemon) direct() func(context.Context, netip.AddrPort) (net.Conn, error) {
	n, ok := d.network.(GuestDialer)
	if !ok {
		return nil
	}
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if err := d.awaken(ctx); err != nil {
			return nil, err
		}
		return n.DialGuest(ctx, to)
	}
}

// awaken waits until the engine answers, and sets a paused machine going.
func (d *daemon) awaken(ctx context.Context) error {
	select {
	case <-d.running:
	case <-d.deaf:
		return vm.ErrNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
	return d.wake(ctx)
}

// lend lists what the guest can reach on this host.
func (d *daemon) lend(n wire.Network) {
	d.progress.update(func(s *api.Status) {
		s.Lent = []api.Lent{
			{What: "outbound network", Detail: "as this user, from " + n.Address},
			{What: "dns", Detail: strings.Join(n.DNS, ", ") + " asks the host's resolvers"},
			{What: "loopback", Detail: n.Host + " (host.docker.internal) is this host's 127.0.0.1; registries on localhost are reached"},
		}
		s.Lent = append(s.Lent, d.lentFolders()...)
	})
}

// watch is the machine's life from power-on to power-off.
// start ends when the first boot has taken too long.
func (d *daemon) watch(ctx, start context.Context, m vm.Machine) error {
	off := make(chan error, 1)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	beside, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	tasks.Go(func() { off <- m.Wait(beside) })
	stopClock, err := watchClock(func() { d.sendTime(beside) })
	if err != nil {
		d.log.Warn("the guest will not be told when this host has slept", "error", err)
	} else {
		defer stopClock()
	}
	until, _ := start.Deadline()
	deadline := time.NewTimer(time.Until(until))
	defer deadline.Stop()
	var grace <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return d.shutdown(ctx, m, off)
		case err := <-off:
			return d.died(err)
		case <-d.resets:
			d.log.Info("the guest restarted")
			if d.progress.get().State == api.Starting {
				return errors.New("the guest restarted before it was up: see \"berth logs\"")
			}
			d.progress.transition(api.Starting, nil)
			d.progress.begin("boot")
			deadline.Reset(d.o.StartTimeout)
			grace = nil
		case s := <-d.sessions:
			tasks.Go(func() { d.awaitEngine(beside, s, m) })
		case s := <-d.lost:
			if now := d.hello.session(); now == nil || now == s {
				grace = time.After(lostGrace)
			}
		case <-grace:
			return errors.New("the guest's first process ended, and the guest did neither restart nor switch off: see \"berth logs\"")
		case s := <-d.ready:
			if s == d.hello.session() {
				deadline.Stop()
				d.up(s)
			}
		case err := <-d.refused:
			return err
		case s := <-d.saves:
			err := d.save(s.ctx, m)
			s.done <- err
			if err == nil {
				return <-off
			}
			d.log.Warn("the machine is not saved", "error", err)
		case <-deadline.C:
			return d.timeout()
		}
	}
}

// sendTime sets the guest's clock, which stood still while this host slept.
func (d *daemon) sendTime(ctx context.Context) {
	if d.progress.get().Paused {
		return // it is told when it goes on
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	err := d.hello.session().order(ctx, wire.Order{Op: wire.OpTime, Time: time.Now()})
	d.log.Info("told the guest the time", "error", err)
}

func (d *daemon) up(s *session) {
	d.progress.update(func(st *api.Status) { st.Kernel = s.hello.Kernel })
	d.progress.transition(api.Running, nil)
	select {
	case <-d.running:
	default:
		close(d.running)
	}
	// What the start took is not needed by a daemon that may now be idle for days.
	debug.FreeOSMemory()
}

// died explains an end that nobody here asked for.
func (d *daemon) died(err error) error {
	switch {
	case err == nil && d.progress.get().State == api.Running:
		d.log.Info("the guest switched itself off")
		return nil
	case err == nil:
		return errors.New("the guest switched itself off before it was up: see \"berth logs\"")
	case errors.Is(err, vm.ErrKilled):
		return fmt.Errorf("the virtual machine was killed from outside: start it again with \"berth start\": %w", err)
	}
	return fmt.Errorf("the virtual machine ended: %w", err)
}

// shutdown switches the machine off: politely by the guest's agent, then by the
// power button, then by the plug.
func (d *daemon) shutdown(ctx context.Context, m vm.Machine, off <-chan error) error {
	cause := context.Cause(ctx)
	d.mu.Lock()
	polite := d.polite
	d.mu.Unlock()
	if polite == nil { // a signal, or a start that was given up
		timeout := time.Duration(d.o.Config.StopTimeout)
		if errors.Is(cause, errCanceled) {
			timeout = plugTimeout
		}
		var cancel context.CancelFunc
		polite, cancel = context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
	}
	if err := d.wake(polite); err != nil {
		d.log.Warn("the paused machine does not go on", "error", err)
	}
	if !errors.Is(cause, errCanceled) {
		d.progress.transition(api.Stopping, nil)
		cause = nil
	}
	err := d.powerOff(polite, m, off)
	if cause != nil {
		return cause
	}
	return err
}

func (d *daemon) powerOff(polite context.Context, m vm.Machine, off <-chan error) error {
	if d.hello.awaited() {
		// Nobody hears a power button yet, and nothing is mounted that a plug
		// could harm.
		m.Close()
		<-off
		return nil
	}
	orderErr := d.hello.session().order(polite, wire.Order{Op: wire.OpPowerOff})
	if orderErr == nil {
	wait:
		for {
			select {
			case <-off:
				return nil
			case <-polite.Done():
				break wait
			case <-d.lost: // as it must
			case <-d.sessions:
			case <-d.ready:
			}
		}
	}
	d.log.Warn("the guest does not switch off by itself", "error", orderErr)
	button, cancel := context.WithTimeout(polite, plugTimeout)
	defer cancel()
	stop := make(chan error, 1)
	go func() { stop <- m.Stop(button) }()
	var stopErr error
	for done := false; !done; {
		select {
		case stopErr = <-stop:
			done = true
		case <-d.lost:
		case <-d.sessions:
		case <-d.ready:
		}
	}
	if stopErr != nil {
		return fmt.Errorf("cannot switch the machine off: %w", stopErr)
	}
	if err := <-off; errors.Is(err, vm.ErrKilled) {
		d.progress.warn("the guest did not switch off in time and was unplugged: its data disk will be checked at the next start")
	}
	return nil
}

// The hello's callbacks hand over to watch. They give up when nobody listens.

func (d *daemon) sessionBegan(s *session) { d.send(d.sessions, s) }

func (d *daemon) sessionEnded(s *session, why error) {
	d.log.Info("the guest's control stream ended", "error", why)
	d.send(d.lost, s)
}

func (d *daemon) send(to chan<- *session, s *session) {
	select {
	case to <- s:
	case <-d.deaf:
	}
}

// welcome is the guest's configuration.
func (d *daemon) welcome(secret []byte, h wire.Hello) wire.Welcome {
	if err := checkHello(h, d.caps.Arch); err != nil {
		select {
		case d.refused <- err:
		default:
		}
		return wire.Welcome{Protocol: wire.Protocol, Error: err.Error()}
	}
	d.progress.endPhase("boot")
	bundle, err := readBundle(d.o.Config.CABundle)
	if err != nil {
		d.log.Error("the guest does without the CA bundle", "error", err)
	}
	network := d.network.Guest()
	return wire.Welcome{
		Protocol: wire.Protocol,
		Secret:   secret,
		Time:     time.Now(),
		Hostname: d.o.Machine.Hostname(),
		Network:  network,
		SSH:      wire.SSH{HostKey: d.keys.HostPEM, AuthorizedKey: d.keys.AuthorizedKey()},
		Machine: wire.Machine{Name: d.o.Machine.Name, Version: d.o.Version, Driver: d.caps.Driver,
			Acceleration: d.caps.Acceleration, Hypervisor: d.caps.Version, DockerSocket: d.o.Machine.DockerAddress()},
		Proxy:    guestProxy(d.o.Config.Proxy, d.o.Proxy, network.Host),
		CABundle: bundle,
		Shares:   d.welcomeShares(),
	}
}

// maxBundle keeps the Welcome under wire.MaxFrame, with JSON's escapes.
const maxBundle = 512 << 10

func readBundle(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	body, err := os.ReadFile(path)
	if err == nil && len(body) > maxBundle {
		err = fmt.Errorf("%s is larger than %s", path, machine.Size(maxBundle))
	}
	if err != nil {
		return "", fmt.Errorf("ca-bundle: %w", err)
	}
	return string(body), nil
}
