package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// earlyModules are the initramfs' modules, opened so that they can be loaded
// while the root is being switched. The builder has grouped them in directories
// and numbered them in an order in which they load.
type earlyModules struct {
	groups map[string][]*os.File
}

func openEarlyModules(dir string) (*earlyModules, error) {
	e := &earlyModules{groups: map[string][]*os.File{}}
	groups, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		files, err := os.ReadDir(filepath.Join(dir, group.Name())) // sorted
		if err != nil {
			return nil, err
		}
		for _, entry := range files {
			file, err := os.Open(filepath.Join(dir, group.Name(), entry.Name()))
			if err != nil {
				return nil, err
			}
			e.groups[group.Name()] = append(e.groups[group.Name()], file)
		}
	}
	return e, nil
}

// load loads groups in turn and closes their files. Different groups may be
// loaded at once.
func (e *earlyModules) load(groups ...string) error {
	var errs []error
	for _, group := range groups {
		for _, file := range e.groups[group] {
			if group != "mmio" || hasMMIO() {
				errs = append(errs, loadModule(file))
			}
			file.Close()
		}
	}
	return errors.Join(errs...)
}

// close closes the files of groups that this machine does not need, with which the
// initramfs would stay in memory.
func (e *earlyModules) close() {
	for _, files := range e.groups {
		for _, file := range files {
			file.Close() // again, where it was loaded
		}
	}
}

// hasMMIO reports whether ACPI describes a virtio-mmio device; machines with PCI
// need not load the bus' module.
func hasMMIO() bool {
	found, err := filepath.Glob("/sys/bus/platform/devices/LNRO0005:*")
	return err == nil && len(found) > 0
}

func loadModule(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var loadErr error
	err = raw.Control(func(fd uintptr) { loadErr = unix.FinitModule(int(fd), "", 0) })
	if err := errors.Join(err, loadErr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(file.Name()), err)
	}
	return nil
}

// loadCore loads groups of the root's core modules, as the builder listed them,
// with the lowest priority until hurry is closed.
func loadCore(hurry <-chan struct{}, groups ...string) error {
	runtime.LockOSThread() // the priority is the thread's, which ends with the goroutine
	thread := unix.Gettid()
	if err := unix.Setpriority(unix.PRIO_PROCESS, thread, 19); err != nil {
		return err
	}
	loaded := make(chan struct{})
	defer close(loaded)
	go func() {
		select {
		case <-hurry:
			unix.Setpriority(unix.PRIO_PROCESS, thread, 0)
		case <-loaded:
		}
	}()
	dir := filepath.Join("/lib/modules", release())
	list, err := os.ReadFile(filepath.Join(dir, "core"))
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range strings.Split(strings.TrimSpace(string(list)), "\n") {
		group, name, _ := strings.Cut(line, " ")
		if !slices.Contains(groups, group) {
			continue
		}
		file, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			err = loadModule(file)
			file.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
