package vz

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/vm"
)

func TestSpec(t *testing.T) {
	d := newDriver(Options{StateDir: "/state", Rosetta: true}, nil)
	shares := []vm.Share{{Tag: "host0", Path: "/Users/me"}}
	s := newMachine(d, vm.Config{CPUs: 3, MemoryMiB: 1024, Cmdline: []string{"quiet", "root=/dev/vda"}, Shares: shares}).spec()
	if s.cmdline != "console=hvc0 berth.streams=framed berth.rosetta=virtiofs quiet root=/dev/vda" || !framed.Requested(s.cmdline) {
		t.Errorf("command line %q", s.cmdline)
	}
	if s.cpus != 3 || s.memoryBytes != 1<<30 || s.sync != SyncFull || !s.rosetta || s.nested || len(s.shares) != 1 || s.shares[0] != shares[0] {
		t.Errorf("spec %+v", s)
	}
	if s.identifier != filepath.Join("/state", "vz-identifier") {
		t.Errorf("identifier in %q", s.identifier)
	}
	d = newDriver(Options{Sync: SyncFsync}, nil)
	if s := newMachine(d, vm.Config{}).spec(); s.sync != SyncFsync || s.identifier != "" || strings.Contains(s.cmdline, "rosetta") {
		t.Errorf("spec %+v", s)
	}
}

func TestLimits(t *testing.T) {
	l := limits{minCPUs: 1, maxCPUs: 4, minMemory: 512 << 20, maxMemory: 2 << 30}
	for _, tt := range []struct {
		cpus, mib int
		want      string
	}{
		{1, 512, ""}, {4, 2048, ""},
		{5, 1024, "cpus: 5: this Mac allows 1 to 4"},
		{1, 511, "allows 512 to 2048 MiB"},
		{1, 2049, "allows 512 to 2048 MiB"},
	} {
		err := l.check(vm.Config{CPUs: tt.cpus, MemoryMiB: tt.mib})
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%d CPUs, %d MiB: %v, want %q", tt.cpus, tt.mib, err, tt.want)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for version, ok := range map[string]bool{"13.0": true, "15.3.1": true, "26": true, "12.7.6": false, "": false, "x.y": false} {
		err := checkVersion(version)
		if (err == nil) != ok || (err != nil && !errors.Is(err, vm.ErrUnavailable)) {
			t.Errorf("macOS %q: %v", version, err)
		}
	}
}

func TestCheckKernel(t *testing.T) {
	at := func(offset int, magic string) []byte { return append(make([]byte, offset), magic+"rest"...) }
	for _, tt := range []struct {
		name, arch string
		data       []byte
		ok         bool
	}{
		{"arm64 Image", "arm64", at(0x38, "ARM\x64"), true},
		{"bzImage", "amd64", at(0x202, "HdrS"), true},
		{"ELF", "amd64", append([]byte("\x7fELF"), make([]byte, 4096)...), false},
		{"bzImage on arm64", "arm64", at(0x202, "HdrS"), false},
		{"gzip", "arm64", append([]byte{0x1f, 0x8b}, make([]byte, 4096)...), false},
		{"empty", "arm64", nil, false},
		{"cut", "amd64", at(0x202, "H")[:0x203], false},
	} {
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkKernel(path, tt.arch); (err == nil) != tt.ok {
			t.Errorf("%s on %s: %v", tt.name, tt.arch, err)
		}
	}
}

func TestIdentifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id")
	made := 0
	fresh := func() ([]byte, error) { made++; return []byte{'i', 'd', byte(made)}, nil }
	valid := func(id []byte) bool { return bytes.HasPrefix(id, []byte("id")) }
	get := func() string {
		id, err := identifier(path, fresh, valid)
		if err != nil {
			t.Fatal(err)
		}
		return string(id)
	}
	if a, b := get(), get(); a != "id\x01" || b != a {
		t.Errorf("identifiers %q and %q, want the first twice", a, b)
	}
	for _, bad := range []string{"", "garbage"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, b := get(), get(); !valid([]byte(a)) || a != b {
			t.Errorf("after %q: identifiers %q and %q", bad, a, b)
		}
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("%d files, want the identifier's only", len(left))
	}
	if _, err := identifier(filepath.Join(path, "below"), fresh, valid); err == nil {
		t.Error("an identifier that cannot be kept is no error")
	}
}

func TestState(t *testing.T) {
	for s, want := range map[state]string{stateStopped: "stopped", stateRestoring: "restoring", 10: "state 10", -1: "state -1"} {
		if s.String() != want {
			t.Errorf("state %d is %q, want %q", int(s), s, want)
		}
	}
	for s := stateStopped; s <= stateRestoring; s++ {
		if off := s == stateStopped || s == stateError; s.off() != off {
			t.Errorf("%v.off() = %t", s, s.off())
		}
	}
}

type server struct{}

func (server) HandleRequest(_, _ [][]byte) int { return 0 }
func (server) Reset() error                    { return nil }

func TestNewRefuses(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "Image")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := vm.Config{Name: "m", CPUs: 1, MemoryMiB: 256, Kernel: kernel}
	for name, change := range map[string]func(*vm.Config, *Options){
		"kernel": func(c *vm.Config, _ *Options) { c.Kernel = kernel + "x" },
		"initrd": func(c *vm.Config, _ *Options) { c.Initrd = filepath.Dir(kernel) },
		"disk":   func(c *vm.Config, _ *Options) { c.Disks = []vm.Disk{{Path: kernel + "x"}} },
		"share":  func(c *vm.Config, _ *Options) { c.Shares = []vm.Share{{Tag: "a", Path: kernel}} },
		"server": func(c *vm.Config, _ *Options) {
			c.Shares = []vm.Share{{Tag: "a", Path: filepath.Dir(kernel), Server: server{}}}
		},
		"tag": func(c *vm.Config, _ *Options) {
			c.Shares = []vm.Share{{Tag: devices.RosettaTag, Path: filepath.Dir(kernel)}}
		},
		"cpus": func(c *vm.Config, _ *Options) { c.CPUs = 99 },
		"sync": func(_ *vm.Config, o *Options) { o.Sync = "none" },
	} {
		cfg, o := good, Options{}
		change(&cfg, &o)
		if _, err := newDriver(o, found{}).New(t.Context(), cfg, t.TempDir()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := newDriver(Options{}, found{}).New(t.Context(), good, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// found is a framework that makes no machines.
type found struct{ framework }

func (found) probe() (string, error)   { return "fake", nil }
func (found) limits() limits           { return limits{1, 8, 1 << 20, 1 << 40} }
func (found) checkKernel(string) error { return nil }

func TestUnavailable(t *testing.T) {
	d := New(Options{})
	if _, ok := d.fw.(interface{ create(spec) (instance, error) }); !ok {
		t.Fatal("no framework")
	}
	if _, err := d.Probe(t.Context()); err != nil && !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("Probe() = %v, want %v", err, vm.ErrUnavailable)
	}
	if _, err := d.New(t.Context(), vm.Config{Name: "m", CPUs: 1, MemoryMiB: 256, Kernel: os.Args[0]}, t.TempDir()); err == nil {
		t.Error("New() works without a kernel")
	}
}
