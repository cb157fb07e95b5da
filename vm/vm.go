// Package vm is the contract between Berth's host side and the hypervisors
// that can run its guest. It holds interfaces and plain values only: each
// driver (vm/qemu, vm/vz, vm/hyperv) implements them, vm/vmtest holds the
// acceptance suite that every driver passes, and vm/vmfake is an in-memory
// implementation for unit tests.
//
// Sizes carry their unit in the name. Paths are absolute host paths. Every
// blocking method takes a context; a context bounds the call it is given to and
// never the life of what the call returns.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
)

// Errors a caller may match with errors.Is.
var (
	// ErrUnavailable says that a driver cannot work on this host. The text that
	// wraps it says what to install or switch on.
	ErrUnavailable = errors.New("virtualization is unavailable")
	// ErrNotRunning is returned by calls that need a started machine.
	ErrNotRunning = errors.New("machine is not running")
	// ErrStarted is returned by a second Start: a Machine runs once.
	ErrStarted = errors.New("machine was already started")
	// ErrClosed is returned by every call after Close, except Wait, which still
	// tells why the machine ended; one that was never started ended with ErrClosed.
	ErrClosed = errors.New("machine is closed")
	// ErrKilled is what Wait returns when the machine had to be unplugged.
	ErrKilled = errors.New("machine was killed")
)

// Driver makes machines of one kind of hypervisor.
// Its methods are safe for concurrent use.
type Driver interface {
	// Probe finds out whether the driver works on this host and how well. The
	// error wraps ErrUnavailable and says how to mend it. A probe ends within
	// seconds even where the host's virtualization hangs.
	Probe(ctx context.Context) (Caps, error)

	// New prepares a machine: it validates cfg, and keeps its sockets, pid file
	// and other run-time state in dir, which exists, belongs to the caller alone
	// and has a short path (sockets live there). It boots nothing. A leftover of
	// a crashed predecessor in dir, processes included, is removed first.
	New(ctx context.Context, cfg Config, dir string) (Machine, error)
}

// Machine is one virtual machine, good for one run: New, Start, Wait, Close.
// Its methods are safe for concurrent use.
type Machine interface {
	Transport

	// Start boots the machine and returns once its CPUs run, which is long before
	// its userspace does. ctx bounds the start, not the life.
	Start(ctx context.Context) error

	// Stop asks the guest to power down, as a power button does, and waits. When
	// ctx ends first the plug is pulled. It returns nil once the machine is off,
	// however it got there, and also when it was never on.
	Stop(ctx context.Context) error

	// Wait blocks until the machine has ended and says why: nil for an orderly
	// power-off, ErrKilled after an unplugging, else what went wrong. Many may
	// wait; all get the same answer. ctx gives up the waiting only.
	Wait(ctx context.Context) error

	// Close pulls the plug if need be and frees everything the machine holds,
	// from any state. It may be called more than once.
	Close() error
}

// Transport is the machine's vsock: streams between host and guest, addressed
// by port. The caller owns and closes what it gets. Every net.Conn it hands out
// has CloseWrite() error, with TCP's half-close semantics, and deadlines.
type Transport interface {
	// Dial connects to a port on which the guest listens. A port nobody listens
	// on fails at once with an error for which errors.Is(err,
	// syscall.ECONNREFUSED) or errors.Is(err, syscall.ECONNRESET) holds.
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// Listen takes the guest's connections to a host port. It may be called
	// before Start. A second Listen on the same open port is an error. A listener
	// outlives restarts of the guest and closes when the machine ends.
	Listen(port uint32) (net.Listener, error)
}

// Pauser is implemented by machines that can freeze their CPUs.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Saver is implemented by machines whose whole state can be put into a file.
// Restore takes the place of Start, on a machine made from the same Config by the
// same driver. The guest goes on where it was, but all its streams are broken, and
// its clock stood still.
type Saver interface {
	// Save writes the state to path, which does not exist, and ends the machine,
	// orderly. A machine that cannot be saved runs on. Where none of its kind can be,
	// the error wraps errors.ErrUnsupported and says why.
	Save(ctx context.Context, path string) error
	// Restore only reads path, whose state is good for one Restore: the disks change
	// from then on.
	Restore(ctx context.Context, path string) error
}

// Ballooner is implemented by machines that can take memory from a running guest
// and give it back.
type Ballooner interface {
	// SetMemory leaves the guest so much, at most Config.MemoryMiB. The guest gives
	// it up as it can, after the call has returned.
	SetMemory(ctx context.Context, mebibytes int) error
}

// DiskMaker is implemented by drivers whose disks that are written to are not raw
// images. A Config for such a driver names what MakeDisk has made; disks that are
// read only are raw all the same.
type DiskMaker interface {
	// DiskSuffix ends the names of such images: ".vhdx".
	DiskSuffix() string
	// MakeDisk makes an image of a disk of size bytes that reads as zeros, or makes
	// the one that is there as large. A disk never shrinks: that is an error. No
	// machine uses the image.
	MakeDisk(path string, size int64) error
}

// Caps says what a driver found on this host.
type Caps struct {
	Driver       string `json:"driver"`           // "qemu", "vz", "hyperv", "fake"
	Version      string `json:"version"`          // of the hypervisor, as a person writes it: "QEMU 7.2.22"
	Acceleration string `json:"acceleration"`     // "kvm", "hvf", "whpx", "tcg", ...
	Reason       string `json:"reason,omitempty"` // why it is not better than that; empty when it is the best
	Arch         string `json:"arch"`             // of the guests it runs, as GOARCH spells it
	// Folders says that machines have a device for each of Config.Shares, which its
	// Server answers. Without, the guest has to be served over a stream, and New may
	// refuse shares.
	Folders bool `json:"-"`
	// Native says that the hypervisor itself serves those of Config.Shares that have
	// no Server, which the guest mounts by virtiofs. They show it all that the folder
	// holds, and every file as the user's.
	Native bool `json:"-"`
}

// Config describes a machine. It is a value: a driver copies what it keeps.
type Config struct {
	Name      string // for messages and process titles: [a-z0-9][a-z0-9-]*
	CPUs      int    // at least 1
	MemoryMiB int    // at least 256

	Kernel  string   // boot image, in the form the manifest names for this driver
	Initrd  string   // optional
	Cmdline []string // kernel parameters, in order; the driver adds what its devices need

	Disks   []Disk    // in order: the guest sees /dev/vda, /dev/vdb, ...
	Network Network   // optional
	Shares  []Share   // folders the guest may mount
	Console io.Writer // gets the guest's console output; nil drops it. Calls are serial.

	// Reset, if set, is called after the guest has restarted itself: connections
	// and whatever was agreed with the old kernel are void. It may be called twice
	// for one restart, but not once the new kernel runs. It must not block.
	Reset func()
}

// Disk is one raw disk image, or one of a DiskMaker's.
type Disk struct {
	Path     string
	ReadOnly bool
	Serial   string // at most 20 bytes of [A-Za-z0-9-]; the guest finds the disk by it
}

// Network is the far end of the machine's one Ethernet cable, on the host.
// A driver uses the one of the two methods that fits its device.
type Network interface {
	// MAC is the address the machine's network device must have.
	MAC() net.HardwareAddr
	// ServeStream carries frames over conn, each behind its length as four bytes,
	// big-endian, until conn fails or ctx ends. It closes conn.
	ServeStream(ctx context.Context, conn net.Conn) error
	// ServeDatagram carries one frame per datagram over conn, likewise.
	ServeDatagram(ctx context.Context, conn net.Conn) error
}

// OffloadNetwork is found by assertion on a Network: a driver whose network device
// runs in this process plugs it in here, for packets that need not be cut to the
// cable's MTU.
type OffloadNetwork interface {
	// Plug connects a device. The network calls send with a frame for the guest, in
	// pieces, and what the frame leaves to the receiver; neither is kept, and send
	// does not block. The device calls receive with a frame of the guest's, complete
	// or with the same work left, which is not kept either, from one goroutine at a
	// time. After unplug, which waits for nothing, send is not called any more. A
	// cable has two ends: it is an error while something else is plugged in.
	Plug(send func(off Offload, frame [][]byte)) (receive func(frame []byte), unplug func(), err error)
}

// Offload is what a frame leaves to its receiver, in the terms of virtio 1.2,
// section 5.1.6. The zero value is nothing.
type Offload struct {
	// Checksum says that the transport's checksum is that of the pseudo header only:
	// it has to cover the bytes from ChecksumStart on, and stands ChecksumOffset
	// bytes behind that.
	Checksum                      bool
	ChecksumStart, ChecksumOffset uint16
	// Segment is not 0 for a frame of TCP over IPv4 that is to be cut: the most bytes
	// of data in each piece. Header is the length of all headers, Ethernet's included.
	Segment, Header uint16
}

// Share is a folder of the host that the guest mounts by its tag. Server is attached
// to a device (Caps.Folders); without one, the hypervisor serves Path (Caps.Native).
type Share struct {
	Tag      string // at most 36 letters, digits, dashes and underscores
	Path     string
	ReadOnly bool
	Server   ShareServer
}

// ShareServer answers the guest's requests on one folder. It is safe for
// concurrent use.
type ShareServer interface {
	// HandleRequest answers one FUSE request, in, and writes the reply to out. Both
	// stay the caller's, who must not let the guest change in meanwhile. It returns
	// the reply's length in bytes, 0 when there is none.
	HandleRequest(in, out [][]byte) int
	// Reset forgets what the guest knew and had open: it has been restarted. No
	// request is under way then.
	Reset() error
}

// Validate reports what is wrong with the share's tag.
func (s Share) Validate() error {
	const maxTag = 36 // bytes, virtio 1.2, 5.11.4
	if s.Tag == "" || len(s.Tag) > maxTag {
		return fmt.Errorf("share %q: a tag has 1 to %d characters", s.Tag, maxTag)
	}
	for _, r := range s.Tag {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return fmt.Errorf("share %q: a tag has letters, digits, dashes and underscores only", s.Tag)
		}
	}
	return nil
}

// Validate reports the first thing wrong with c, purely: it looks at no file.
func (c Config) Validate() error {
	switch {
	case !validName(c.Name):
		return fmt.Errorf("invalid machine name %q: use lower-case letters, digits and dashes", c.Name)
	case c.CPUs < 1:
		return fmt.Errorf("cpus: %d: a machine needs at least 1", c.CPUs)
	case c.MemoryMiB < 256:
		return fmt.Errorf("memory: %d MiB: a machine needs at least 256 MiB", c.MemoryMiB)
	case !filepath.IsAbs(c.Kernel):
		return fmt.Errorf("kernel: %q is not an absolute path", c.Kernel)
	case c.Initrd != "" && !filepath.IsAbs(c.Initrd):
		return fmt.Errorf("initrd: %q is not an absolute path", c.Initrd)
	}
	for i, d := range c.Disks {
		if !filepath.IsAbs(d.Path) {
			return fmt.Errorf("disk %d: %q is not an absolute path", i, d.Path)
		}
		if !validSerial(d.Serial) {
			return fmt.Errorf("disk %d: invalid serial %q: at most 20 letters, digits and dashes", i, d.Serial)
		}
	}
	seen := map[string]bool{}
	for _, s := range c.Shares {
		if err := s.Validate(); err != nil {
			return err
		}
		if seen[s.Tag] {
			return fmt.Errorf("share %q: the tag is taken by another share", s.Tag)
		}
		seen[s.Tag] = true
	}
	return nil
}

// CheckMemory refuses what a Ballooner cannot leave the guest.
func (c Config) CheckMemory(mebibytes int) error {
	if mebibytes < 1 || mebibytes > c.MemoryMiB {
		return fmt.Errorf("memory: %d MiB: machine %q has 1 to %d", mebibytes, c.Name, c.MemoryMiB)
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func validSerial(s string) bool {
	if len(s) > 20 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
