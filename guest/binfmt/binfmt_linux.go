package binfmt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// dir is where the kernel lists what is registered.
const dir = "/proc/sys/fs/binfmt_misc"

// Handler is an interpreter of the programs for an architecture.
type Handler struct {
	Name        string // unique: no second of that name is registered
	Arch        string // GOARCH: amd64 or arm64
	Interpreter string // path of a program that needs no other file
	KeepsArgv0  bool   // the interpreter takes the program's path and its argv[0] apart
}

const rosetta = "rosetta"

// Rosetta returns the handler for programs for amd64 on arm64 by Apple's
// interpreter.
func Rosetta(interpreter string) Handler {
	return Handler{Name: rosetta, Arch: "amd64", Interpreter: interpreter}
}

// machines are the values of e_machine of elf(5), least significant byte first.
var machines = map[string]string{"amd64": `\x3e\x00`, "arm64": `\xb7\x00`}

// rule is what the kernel is told: to go by a program's first bytes, except those
// for the kind of system and of program (a static or a dynamic one). C: it runs
// with the rights of the program, not of the interpreter. F: the interpreter is
// opened now. P: it gets argv[0] besides the path.
func (h Handler) rule() string {
	flags := "CF"
	if h.KeepsArgv0 {
		flags = "PCF"
	}
	return ":" + h.Name + ":M::" +
		`\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00` + machines[h.Arch] + ":" +
		`\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:` +
		h.Interpreter + ":" + flags
}

// Register registers h for as long as the machine runs. What is registered already
// under its name stays.
func Register(h Handler) error {
	if err := mount(); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(dir, "register"), []byte(h.rule()), 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("register the interpreter %s for programs for %s: %w", h.Interpreter, h.Arch, err)
	}
	return nil
}

// mount mounts dir, unless it is. The directory itself is the module's: it is there
// once the kernel has been asked for the file system.
func mount() error {
	fd, err := unix.Fsopen("binfmt_misc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("load binfmt_misc: %w", err)
	}
	unix.Close(fd)
	err = unix.Mount("binfmt_misc", dir, "binfmt_misc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "")
	if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: it is mounted
		return fmt.Errorf("mount binfmt_misc: %w", err)
	}
	return nil
}

// emulators are those of the root file system, by the machine's architecture.
var emulators = map[string]Handler{
	"amd64": {Name: "qemu-aarch64", Arch: "arm64", Interpreter: "/usr/bin/qemu-aarch64-static", KeepsArgv0: true},
	"arm64": {Name: "qemu-x86_64", Arch: "amd64", Interpreter: "/usr/bin/qemu-x86_64-static", KeepsArgv0: true},
}

// Emulated returns the architecture, as a GOARCH, whose programs run although it is
// not the machine's own; an empty string: there is none.
func Emulated() string {
	h := emulators[runtime.GOARCH]
	if _, err := os.Stat(h.Interpreter); err != nil {
		return ""
	}
	return h.Arch
}

var registering sync.Mutex

// Need has the kernel run programs for arch, a GOARCH, if it is Emulated. Another
// that this machine does not run is no error: its programs fail when they are
// executed. Need is safe for concurrent use, and cheap once it has succeeded.
func Need(arch string) error {
	if arch == "" || arch == runtime.GOARCH || arch != Emulated() {
		return nil
	}
	registering.Lock()
	defer registering.Unlock()
	h := emulators[runtime.GOARCH]
	for _, name := range []string{rosetta, h.Name} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil
		}
	}
	return Register(h)
}
