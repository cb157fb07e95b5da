package vz

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/berthvm/berth/vm"
)

// framework is what this package needs of Virtualization.framework.
type framework interface {
	probe() (version string, err error) // the error wraps vm.ErrUnavailable
	limits() limits
	checkKernel(path string) error
	create(spec spec) (instance, error)
}

// instance is one virtual machine of the framework. Its methods are safe for
// concurrent use and block until the framework has answered, which connect may
// never do.
type instance interface {
	start() error
	stop() error // pulls the plug
	requestStop() error
	pause() error
	resume() error
	canSave() error
	save(path string) error    // of a paused machine
	restore(path string) error // instead of start; leaves it paused
	setMemory(bytes uint64)
	states() <-chan state // the one channel there is
	connect(port uint32) (net.Conn, error)
	listen(port uint32) (net.Listener, error)
	release() // after it has stopped
}

// spec is a machine as the framework shall make it.
type spec struct {
	cpus        uint
	memoryBytes uint64
	kernel      string
	initrd      string
	cmdline     string
	disks       []vm.Disk
	shares      []vm.Share // without servers
	sync        Sync
	rosetta     bool
	nested      bool
	identifier  string // file, may be empty

	mac        net.HardwareAddr
	network    *os.File // connected datagram socket; nil without a network
	consoleIn  *os.File // never has anything to read
	consoleOut *os.File
}

// limits are what the framework allows of a machine on this host.
type limits struct {
	minCPUs, maxCPUs     uint
	minMemory, maxMemory uint64 // bytes
}

func (l limits) check(cfg vm.Config) error {
	memory := uint64(cfg.MemoryMiB) << 20
	switch {
	case uint(cfg.CPUs) < l.minCPUs || uint(cfg.CPUs) > l.maxCPUs:
		return fmt.Errorf("cpus: %d: this Mac allows %d to %d", cfg.CPUs, l.minCPUs, l.maxCPUs)
	case memory < l.minMemory || memory > l.maxMemory:
		return fmt.Errorf("memory: %d MiB: this Mac allows %d to %d MiB", cfg.MemoryMiB, l.minMemory>>20, l.maxMemory>>20)
	}
	return nil
}

// oldest is the first macOS whose framework has all that this package needs.
const oldest = 13

// checkVersion refuses a version of macOS, as "14.6.1", that is too old.
func checkVersion(version string) error {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return fmt.Errorf("%w: macOS has the version %q, which is none", vm.ErrUnavailable, version)
	}
	if n < oldest {
		return fmt.Errorf("%w: macOS %d or newer is needed, this is %s: update macOS", vm.ErrUnavailable, oldest, version)
	}
	return nil
}

// state is where the framework's machine is, numbered as the framework does.
type state int

const (
	stateStopped state = iota
	stateRunning
	statePaused
	stateError
	stateStarting
	statePausing
	stateResuming
	stateStopping
	stateSaving
	stateRestoring
)

var stateNames = [...]string{"stopped", "running", "paused", "error", "starting", "pausing", "resuming", "stopping", "saving", "restoring"}

// String implements fmt.Stringer.
func (s state) String() string {
	if s >= 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", int(s))
}

// off tells whether a machine that was started is off in this state.
func (s state) off() bool { return s == stateStopped || s == stateError }
