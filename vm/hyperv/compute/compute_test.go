package compute

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden documents")

const (
	id   = "0e1d2c3b-4a59-6877-8695-a4b3c2d1e0f0"
	user = "S-1-5-21-1004336348-1177238915-682003330-512"
)

func small() Design {
	return Design{ID: id, Name: "dev", CPUs: 1, MemoryMiB: 256, Kernel: `C:\img\vmlinux`, Cmdline: "console=ttyS0"}
}

func full() Design {
	return Design{
		ID: id, Name: "dev", CPUs: 4, MemoryMiB: 4096, Kernel: `C:\img\vmlinux`, Initrd: `C:\img\initramfs`, Cmdline: "console=ttyS0 quiet",
		Disks:   []Disk{{Path: `C:\run\root.vhdx`, ReadOnly: true}, {Path: `C:\data\data.vhdx`}},
		Console: `\\.\pipe\berth-0123-console`, Restore: `C:\data\state`, User: user,
	}
}

// golden compares a document with its file, both indented.
func golden(t *testing.T, name string, document []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, document, "", "  "); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, document)
	}
	b.WriteByte('\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ReplaceAll(string(want), "\r\n", "\n"); b.String() != want {
		t.Errorf("%s:\n%s\nwant\n%s", name, &b, want)
	}
}

func TestDocuments(t *testing.T) {
	golden(t, "small", small().Document())
	golden(t, "full", full().Document())
	golden(t, "memory", memoryChange(1025))
	golden(t, "save", saveOptions(`C:\state`))
	golden(t, "shutdown", shutDownOptions())
}

// native makes the paths absolute on the host that runs the test.
func native(d Design) Design {
	root := filepath.VolumeName(os.TempDir()) + string(filepath.Separator)
	at := func(p string) string { return filepath.Join(root, strings.ReplaceAll(p, `C:\`, "")) }
	d.Kernel, d.Disks = at(d.Kernel), append([]Disk(nil), d.Disks...)
	if d.Initrd != "" {
		d.Initrd = at(d.Initrd)
	}
	for i := range d.Disks {
		d.Disks[i].Path = at(d.Disks[i].Path)
	}
	if d.Restore != "" {
		d.Restore = at(d.Restore)
	}
	return d
}

func TestValidate(t *testing.T) {
	for _, d := range []Design{small(), full()} {
		if err := native(d).Validate(); err != nil {
			t.Error(err)
		}
	}
	for name, spoil := range map[string]func(*Design){
		"id":           func(d *Design) { d.ID = strings.ToUpper(id) },
		"cpus":         func(d *Design) { d.CPUs = 0 },
		"memory":       func(d *Design) { d.MemoryMiB = 128 },
		"odd memory":   func(d *Design) { d.MemoryMiB = 1025 },
		"much memory":  func(d *Design) { d.MemoryMiB = 1 << 30 },
		"kernel":       func(d *Design) { d.Kernel = "vmlinux" },
		"no kernel":    func(d *Design) { d.Kernel = "" },
		"initrd":       func(d *Design) { d.Initrd = `..\initrd` },
		"cmdline":      func(d *Design) { d.Cmdline = "a\nb" },
		"long cmdline": func(d *Design) { d.Cmdline = strings.Repeat("a", 4096) },
		"disk":         func(d *Design) { d.Disks[0].Path = "" },
		"disks":        func(d *Design) { d.Disks = make([]Disk, 65) },
		"foreign pipe": func(d *Design) { d.Console = `\\.\pipe\lsass` },
		"remote pipe":  func(d *Design) { d.Console = `\\server\pipe\berth-a` },
		"nested pipe":  func(d *Design) { d.Console = `\\.\pipe\berth-..\lsass` },
		"user":         func(d *Design) { d.User = "S-1-5-21)(A;;GA;;;WD" },
		"restore":      func(d *Design) { d.Restore = "state" },
		"NUL":          func(d *Design) { d.Kernel += "\x00.txt" },
	} {
		d := native(full())
		spoil(&d)
		if d.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestOrders(t *testing.T) {
	path := native(full()).Restore
	for _, o := range []Order{{Op: OpStart}, {Op: OpTerminate}, {Op: OpSave, Path: path}, {Op: OpMemory, MemoryMiB: 512}} {
		if err := o.Validate(); err != nil {
			t.Error(err)
		}
	}
	for _, o := range []Order{{}, {Op: "format"}, {Op: OpStart, Path: path}, {Op: OpSave}, {Op: OpSave, Path: "state"}, {Op: OpMemory}, {Op: OpMemory, MemoryMiB: -1}} {
		if o.Validate() == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestWithFiles(t *testing.T) {
	d := full()
	var paths []string
	for _, f := range d.Files() {
		paths = append(paths, "x"+f.Path)
	}
	got := d.WithFiles(paths)
	if got.Kernel != "x"+d.Kernel || got.Initrd != "x"+d.Initrd || got.Disks[1].Path != "x"+d.Disks[1].Path || !got.Disks[0].ReadOnly || got.Restore != "x"+d.Restore {
		t.Errorf("%+v", got)
	}
	if !reflect.DeepEqual(d, full()) {
		t.Error("WithFiles has changed its receiver")
	}
}

func TestExit(t *testing.T) {
	for document, want := range map[string]Event{
		``:                                       {Exited: true},
		`{`:                                      {Exited: true},
		`{"Status":0,"ExitType":"GracefulExit"}`: {Exited: true},
		`{"Status":0,"ExitType":"ForcedExit"}`:   {Exited: true, Forced: true},
		`{"Status":-1,"ExitType":"ForcedExit"}`:  {Exited: true, Forced: true},
		`{"Status":0,"ExitType":"RebootExit"}`:   {Exited: true, Reset: true},
		`{"ExitType":"GuestReset","Attribution":[]}`: {Exited: true, Reset: true},
	} {
		if got := exit(document); got != want {
			t.Errorf("exit(%q) = %+v, want %+v", document, got, want)
		}
	}
	e := exit(`{"Status":-1070137080,"ExitType":"UnexpectedExit"}`)
	if !e.Exited || !strings.Contains(e.Failure, "0xC0370108") {
		t.Errorf("%+v", e)
	}
}
