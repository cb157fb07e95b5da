//go:build darwin && cgo

package vz

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/vm"
)

// The states have the framework's numbers: a constant that differs does not compile.
const (
	_ = uint(stateStopped - state(vz.VirtualMachineStateStopped))
	_ = uint(state(vz.VirtualMachineStateStopped) - stateStopped)
	_ = uint(stateError - state(vz.VirtualMachineStateError))
	_ = uint(state(vz.VirtualMachineStateError) - stateError)
	_ = uint(stateRestoring - state(vz.VirtualMachineStateRestoring))
	_ = uint(state(vz.VirtualMachineStateRestoring) - stateRestoring)
)

func system() framework { return macOS{} }

// macOS is the framework.
type macOS struct{}

func (macOS) probe() (string, error) {
	version, err := unix.Sysctl("kern.osproductversion")
	if err != nil {
		return "", fmt.Errorf("%w: cannot tell the version of macOS: %v", vm.ErrUnavailable, err)
	}
	if err := checkVersion(version); err != nil {
		return "", err
	}
	if n, err := unix.SysctlUint32("kern.hv_support"); err != nil || n == 0 {
		return "", fmt.Errorf("%w: this Mac's processor, or the machine it is, does not support virtualization (kern.hv_support)", vm.ErrUnavailable)
	}
	return "Virtualization.framework, macOS " + version, nil
}

func (macOS) limits() limits {
	return limits{
		minCPUs:   vz.VirtualMachineConfigurationMinimumAllowedCPUCount(),
		maxCPUs:   vz.VirtualMachineConfigurationMaximumAllowedCPUCount(),
		minMemory: vz.VirtualMachineConfigurationMinimumAllowedMemorySize(),
		maxMemory: vz.VirtualMachineConfigurationMaximumAllowedMemorySize(),
	}
}

func (macOS) checkKernel(path string) error { return checkKernel(path, runtime.GOARCH) }

// create makes a machine that does not run.
func (macOS) create(s spec) (instance, error) {
	cfg, err := configure(s)
	if err != nil {
		return nil, err
	}
	if ok, err := cfg.Validate(); err != nil || !ok {
		return nil, fmt.Errorf("Virtualization.framework refuses the machine (is this program signed with its entitlement? see `make build`): %w",
			errors.Join(err, errInvalid(ok)))
	}
	v, err := vz.NewVirtualMachine(cfg)
	if err != nil {
		return nil, err
	}
	sockets := v.SocketDevices()
	if len(sockets) != 1 {
		return nil, fmt.Errorf("the machine has %d vsock devices, want 1", len(sockets))
	}
	b := &box{vm: v, cfg: cfg, socket: sockets[0], notify: make(chan state), released: make(chan struct{})}
	b.takeBalloon()
	go b.forward(v.StateChangedNotify())
	return b, nil
}

func errInvalid(ok bool) error {
	if ok {
		return nil
	}
	return errors.New("it is invalid")
}

// box implements instance.
type box struct {
	vm       *vz.VirtualMachine
	cfg      *vz.VirtualMachineConfiguration
	socket   *vz.VirtioSocketDevice
	balloon  *vz.VirtioTraditionalMemoryBalloonDevice // nil if there is none
	notify   chan state
	released chan struct{}
}

// takeBalloon keeps the one Go object that stands for the balloon. The library
// gives each a finalizer that releases what it never retained.
func (b *box) takeBalloon() {
	for _, d := range b.vm.MemoryBalloonDevices() {
		if t := vz.AsVirtioTraditionalMemoryBalloonDevice(d); t != nil {
			runtime.SetFinalizer(t, nil)
			b.balloon = t
		}
	}
}

// forward turns the library's notes into ours until the box is released.
func (b *box) forward(notes <-chan vz.VirtualMachineState) {
	for {
		select {
		case s := <-notes:
			select {
			case b.notify <- state(s):
			case <-b.released:
				return
			}
		case <-b.released:
			return
		}
	}
}

func (b *box) start() error           { return b.vm.Start() }
func (b *box) stop() error            { return b.vm.Stop() }
func (b *box) pause() error           { return b.vm.Pause() }
func (b *box) resume() error          { return b.vm.Resume() }
func (b *box) states() <-chan state   { return b.notify }
func (b *box) canSave() error         { return canSave(b.cfg) }
func (b *box) save(p string) error    { return saveState(b.vm, p) }
func (b *box) restore(p string) error { return restoreState(b.vm, p) }

func (b *box) requestStop() error {
	if ok, err := b.vm.RequestStop(); err != nil || ok {
		return err
	}
	return errors.New("the machine cannot be asked to stop now")
}

func (b *box) setMemory(bytes uint64) {
	if b.balloon != nil {
		b.balloon.SetTargetVirtualMachineMemorySize(bytes)
	}
}

func (b *box) connect(port uint32) (net.Conn, error) {
	c, err := b.socket.Connect(port)
	if err != nil {
		return nil, posix(err)
	}
	return c, nil
}

func (b *box) listen(port uint32) (net.Listener, error) {
	l, err := b.socket.Listen(port)
	if err != nil {
		return nil, posix(err)
	}
	return l, nil
}

// release leaves the rest to the library's finalizers.
func (b *box) release() {
	close(b.released)
	runtime.KeepAlive(b.balloon)
}

// posix turns the framework's errors with an errno into that errno.
func posix(err error) error {
	var ns *vz.NSError
	if !errors.As(err, &ns) {
		return err
	}
	if ns.Domain == "NSPOSIXErrorDomain" {
		return fmt.Errorf("%s: %w", ns.LocalizedDescription, syscall.Errno(ns.Code))
	}
	return err
}
