// Package qemu runs machines with QEMU 7.2 or newer.
//
// A machine is one QEMU process, a child of this one. Everything between the two
// travels through sockets: QMP (status, power button, events), the console,
// Ethernet frames, and the streams. QEMU inherits them, so no other user of the
// host can reach them and a crash leaves no socket behind. On Windows nothing can
// be inherited: there QEMU connects to unix sockets in the machine's directory,
// which belongs to its user, and each takes one connection.
//
// QEMU never reattaches to what it has lost, so it must not outlive this process.
// On Linux its parent thread stays for as long as it runs, and the kernel kills it
// when that thread is gone; on macOS a shell waits for this process' end and kills
// it then; on Windows it is in a job that ends with this process. Should one be
// left all the same, the next New for the same directory kills it before it locks
// the disks.
//
// # Streams and folders
//
// On Linux the devices run in this process, by vhost-user: a vsock
// (vm/internal/virtiovsock), and virtiofs for shared folders. QEMU has no
// vhost-user on other hosts. There the streams travel through one virtio-serial
// port (vm/internal/serialport), the guest is told so by a kernel parameter, and
// folders are not the driver's business (Caps.Folders): they can be served over a
// stream. Options.Serial has it so on Linux, too.
//
// # Acceleration
//
// The host's own (KVM, HVF, WHPX) where it works, else QEMU's emulator, TCG. Caps
// says which, and why. What claims to be there can still hang for ever, so child
// processes that can be killed try it out: on Linux one runs a single instruction;
// everywhere another runs QEMU's firmware.
//
// The x86 machine is a q35 without what nobody uses. Under TCG it reaches PID 1
// sooner than microvm does, in every variant of that: QEMU 7.2's microvm spends
// two to three seconds in firmware to copy the same kernel, and its guest has to
// calibrate its clocks without a PM timer.
//
// # Stop
//
// Stop presses the ACPI power button, again every two seconds, because a guest
// that is still booting does not hear it. A guest that takes its orders
// elsewhere should be asked there first; it powers off by itself, Stop then only
// waits. When Stop's context ends, QEMU is killed.
package qemu

import (
	"context"
	"log/slog"
	"runtime"
	"sync"

	"github.com/berthvm/berth/vm"
)

// The accelerators a Driver can be told to use.
const (
	KVM  = "kvm"  // on Linux
	HVF  = "hvf"  // on macOS
	WHPX = "whpx" // on Windows
	TCG  = "tcg"  // everywhere: emulation
)

// Options configures a Driver. The zero value works.
type Options struct {
	Binary       string       // QEMU's program; empty finds it in PATH and where it is usually installed
	Acceleration string       // the host's, TCG, or empty: the best that works
	Serial       bool         // streams over a serial port also where there is vhost-user
	Arch         string       // of the guests, as GOARCH spells it; empty is the host's
	CacheDir     string       // keeps what a probe found; empty probes each time
	Log          *slog.Logger // nil drops what would be logged
}

// Driver implements vm.Driver.
type Driver struct {
	opts   Options
	log    *slog.Logger
	layout layout

	mu    sync.Mutex
	found *host // what Probe found, once it has succeeded
}

// host is what Probe finds out about this host's QEMU.
type host struct {
	program program
	accel   string
	cpu     string // the model
	reason  string // why accel is not the host's own

	distrust func(fault string) // has the starts to come know of the accelerator's fault
}

// New returns a driver. It looks at nothing yet.
func New(opts Options) *Driver {
	if opts.Arch == "" {
		opts.Arch = runtime.GOARCH
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{opts: opts, log: log, layout: usual}
}

// Probe implements vm.Driver.
func (d *Driver) Probe(ctx context.Context) (vm.Caps, error) {
	h, err := d.probe(ctx)
	if err != nil {
		return vm.Caps{}, err
	}
	return vm.Caps{
		Driver:       "qemu",
		Version:      "QEMU " + h.program.version.String(),
		Acceleration: h.accel,
		Reason:       h.reason,
		Arch:         d.opts.Arch,
		Folders:      !d.serial(),
	}, nil
}

// probe finds QEMU and the accelerator, once.
func (d *Driver) probe(ctx context.Context) (*host, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found != nil {
		return d.found, nil
	}
	p, err := findProgram(ctx, d.opts.Binary, d.opts.Arch)
	if err != nil {
		return nil, err
	}
	h := &host{program: p}
	h.accel, h.cpu, h.reason, err = d.acceleration(ctx, p)
	if err != nil {
		return nil, err
	}
	h.distrust = func(fault string) {
		if h.accel == native {
			noteFault(p, d.opts.CacheDir, fault)
		}
	}
	d.found = h
	return h, nil
}

// New implements vm.Driver. Besides the checks of cfg it makes sure of the files
// that cfg names, ends a leftover QEMU of an earlier machine in dir, and locks
// the disks until Close.
func (d *Driver) New(ctx context.Context, cfg vm.Config, dir string) (vm.Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	return d.newMachine(h, cfg, dir)
}
