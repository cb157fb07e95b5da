// Package compute makes virtual machines of Windows' Host Compute System, the part
// of Windows (Home too) below Hyper-V's own management.
//
// A Design describes a machine and becomes the system's JSON document by pure
// functions. Service is what makes machines of designs: Local is the system itself,
// by computecore.dll, which wants an elevated process; the package elevated reaches
// one that runs in another process.
//
// Calls and documents follow the public reference, "Host Compute System API" in
// Microsoft's documentation of virtualization, schema version 2.3.
package compute

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/berthvm/berth/vm"
)

// ErrElevation says that the system refuses this process. It is a vm.ErrUnavailable.
var ErrElevation = fmt.Errorf("%w: Windows lets only elevated processes start virtual machines", vm.ErrUnavailable)

// Service makes machines. It is safe for concurrent use.
type Service interface {
	// Probe says of which Windows the system is, or why it cannot be used: then the
	// error wraps vm.ErrUnavailable.
	Probe(ctx context.Context) (version string, err error)
	// Create makes a machine that does not run. The machine ends with its System, and
	// with the process that holds that.
	Create(ctx context.Context, d Design) (System, error)
}

// System is one machine. Its methods are safe for concurrent use.
type System interface {
	// RuntimeID is the machine's address for sockets, a GUID.
	RuntimeID() string
	// Do carries out one order and waits until that is done.
	Do(ctx context.Context, o Order) error
	// Events are what the system says of the machine, in order. The last one has
	// Exited set; then the channel is closed. It must be read.
	Events() <-chan Event
	// Close ends the machine, if it runs, and frees it. It may be called more than
	// once.
	Close() error
}

// Order is what a System is to do.
type Order struct {
	Op        Op     `json:"op"`
	Path      string `json:"path,omitempty"`      // OpSave: the file, absolute
	MemoryMiB int    `json:"memoryMiB,omitempty"` // OpMemory: what the guest shall have
}

// Op names an order.
type Op string

// The orders.
const (
	OpStart     Op = "start"
	OpShutDown  Op = "shutdown"  // ask the guest, by Hyper-V's integration service
	OpTerminate Op = "terminate" // pull the plug
	OpPause     Op = "pause"
	OpResume    Op = "resume"
	OpSave      Op = "save" // of a paused machine, which stays paused
	OpMemory    Op = "memory"
)

// Validate refuses an order that makes no sense.
func (o Order) Validate() error {
	switch o.Op {
	case OpStart, OpShutDown, OpTerminate, OpPause, OpResume:
		if o != (Order{Op: o.Op}) {
			return fmt.Errorf("the order %s takes nothing else", o.Op)
		}
	case OpSave:
		return checkFile(o.Path)
	case OpMemory:
		if o.MemoryMiB < 1 || o.MemoryMiB > maxMemory {
			return fmt.Errorf("memory: %d MiB", o.MemoryMiB)
		}
	default:
		return fmt.Errorf("unknown order %q", o.Op)
	}
	return nil
}

// Event is what the system says of a machine.
type Event struct {
	Crashed bool   `json:"crashed,omitempty"` // the guest's kernel panicked
	Exited  bool   `json:"exited,omitempty"`  // the machine is off
	Reset   bool   `json:"reset,omitempty"`   // it is off because the guest restarted itself
	Forced  bool   `json:"forced,omitempty"`  // it is off because it was terminated
	Failure string `json:"failure,omitempty"` // why the hypervisor has ended it
}

// Design is a machine as it shall be made. It is a value.
type Design struct {
	ID        string `json:"id"` // a GUID, new for each machine
	Name      string `json:"name"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memoryMiB"`
	Kernel    string `json:"kernel"`
	Initrd    string `json:"initrd,omitempty"`
	Cmdline   string `json:"cmdline"`
	Disks     []Disk `json:"disks,omitempty"`   // in the order of their LUNs
	Console   string `json:"console,omitempty"` // a pipe whose server is there before the machine
	Restore   string `json:"restore,omitempty"` // a file of OpSave's to go on from
	User      string `json:"user,omitempty"`    // the SID of who may use its sockets, besides administrators
}

// Disk is a VHDX image.
type Disk struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Bounds of a design.
const (
	maxCPUs    = 2048
	maxMemory  = 12 << 20 // MiB: what Hyper-V allows a machine
	maxCmdline = 2048     // bytes: the kernel's own limit on amd64
	maxDisks   = 64       // LUNs of a controller
	maxPath    = 4096
)

// PipePrefix begins the names of all pipes that a machine may be connected to.
const PipePrefix = `\\.\pipe\berth-`

var (
	guidShape = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	sidShape  = regexp.MustCompile(`^S-1-[0-9]{1,15}(-[0-9]{1,10}){1,15}$`)
	pipeShape = regexp.MustCompile(`^\\\\\.\\pipe\\berth-[0-9a-z-]{1,100}$`)
)

// Validate reports the first thing wrong with d, purely.
func (d Design) Validate() error {
	switch {
	case !guidShape.MatchString(d.ID):
		return fmt.Errorf("id: %q is no GUID", d.ID)
	case d.CPUs < 1 || d.CPUs > maxCPUs:
		return fmt.Errorf("cpus: %d: Hyper-V allows 1 to %d", d.CPUs, maxCPUs)
	case d.MemoryMiB < 256 || d.MemoryMiB > maxMemory:
		return fmt.Errorf("memory: %d MiB: 256 to %d are allowed", d.MemoryMiB, maxMemory)
	case d.MemoryMiB%2 != 0:
		return fmt.Errorf("memory: %d MiB: Hyper-V wants an even number", d.MemoryMiB)
	case len(d.Cmdline) >= maxCmdline || !plain(d.Cmdline):
		return errors.New("the kernel's command line is too long, or not plain text")
	case len(d.Name) > 64 || !plain(d.Name):
		return fmt.Errorf("name: %q", d.Name)
	case d.Console != "" && !pipeShape.MatchString(d.Console):
		return fmt.Errorf("console: %q is not one of Berth's pipes", d.Console)
	case d.User != "" && !sidShape.MatchString(d.User):
		return fmt.Errorf("user: %q is no SID", d.User)
	case len(d.Disks) > maxDisks:
		return fmt.Errorf("%d disks: Hyper-V allows %d", len(d.Disks), maxDisks)
	}
	for _, f := range d.Files() {
		if err := checkFile(f.Path); err != nil {
			return err
		}
	}
	return nil
}

// File is one that a machine needs.
type File struct {
	Path  string
	Write bool
}

// Files are the files that the design's machine opens, in a fixed order.
func (d Design) Files() []File {
	files := []File{{Path: d.Kernel}}
	if d.Initrd != "" {
		files = append(files, File{Path: d.Initrd})
	}
	for _, disk := range d.Disks {
		files = append(files, File{Path: disk.Path, Write: !disk.ReadOnly})
	}
	if d.Restore != "" {
		files = append(files, File{Path: d.Restore})
	}
	return files
}

// WithFiles is d with other paths, in the order of Files.
func (d Design) WithFiles(paths []string) Design {
	next := func() (p string) { p, paths = paths[0], paths[1:]; return p }
	d.Kernel = next()
	if d.Initrd != "" {
		d.Initrd = next()
	}
	disks := make([]Disk, len(d.Disks))
	for i, disk := range d.Disks {
		disks[i] = Disk{Path: next(), ReadOnly: disk.ReadOnly}
	}
	d.Disks = disks
	if d.Restore != "" {
		d.Restore = next()
	}
	return d
}

// checkFile refuses what cannot be the path of a file or folder of this host.
func checkFile(path string) error {
	if !filepath.IsAbs(path) || len(path) > maxPath || !utf8.ValidString(path) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%q is not the absolute path of a file", path)
	}
	return nil
}

// plain tells whether s has printable ASCII only.
func plain(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
