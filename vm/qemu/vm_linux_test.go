package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vmtest"
)

// needVM skips tests that boot machines, unless they are asked for.
func needVM(t testing.TB) {
	t.Helper()
	if os.Getenv("BERTH_VM") == "" {
		t.Skip("boots machines: set BERTH_VM=1")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("scripts/invm has a kernel for amd64 only")
	}
}

// guestModules are loaded by the guest's init, in this order.
var guestModules = []string{
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
	"virtio_blk", "failover", "net_failover", "virtio_net", "virtio_balloon", "virtio_rng",
	"button", "evdev",
}

// guestConfig builds the suite's guest and returns a machine that boots it.
func guestConfig(t testing.TB) vm.Config {
	t.Helper()
	needVM(t)
	kernel := guestKernel(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, "../internal/testguest/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var archive bytes.Buffer
	add := func(name string, mode uint32, data []byte) { addFile(&archive, name, mode, data) }
	addAs := func(name, from string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		add(name, 0o100755, data)
	}
	add("dev", 0o40755, nil)
	add("dev/console", 0o20600, nil)
	add("modules", 0o40755, nil)
	addAs("init", program)
	for i, m := range guestModules {
		files, _ := filepath.Glob(filepath.Join(kernel, "modules", "*", m+".ko"))
		if len(files) != 1 {
			t.Fatalf("module %s: want one file in %s, found %d", m, kernel, len(files))
		}
		addAs(fmt.Sprintf("modules/%02d-%s.ko", i, m), files[0])
	}
	add("TRAILER!!!", 0, nil)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Config{
		Name: "contract", CPUs: 1, MemoryMiB: 256,
		Kernel: filepath.Join(kernel, "vmlinux"), Initrd: initrd,
		Cmdline: []string{"quiet", "panic=-1", "cryptomgr.notests", "random.trust_cpu=on"},
	}
}

// addFile appends one entry in the cpio format that the kernel reads.
func addFile(w *bytes.Buffer, name string, mode uint32, data []byte) {
	major, minor := 0, 0
	if mode&0o170000 == 0o20000 {
		major, minor = 5, 1 // /dev/console
	}
	fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	w.WriteString(name + "\x00")
	pad(w)
	w.Write(data)
	pad(w)
}

func pad(w *bytes.Buffer) {
	for w.Len()%4 != 0 {
		w.WriteByte(0)
	}
}

// guestKernel returns the directory in which scripts/invm keeps its kernel and
// modules, and has it filled when it is empty.
func guestKernel(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var newest string
		var when time.Time
		found, _ := filepath.Glob(filepath.Join(root, ".cache/invm/*/modules/*/button.ko"))
		for _, name := range found {
			if st, err := os.Stat(name); err == nil && st.ModTime().After(when) {
				newest, when = filepath.Dir(filepath.Dir(filepath.Dir(name))), st.ModTime()
			}
		}
		if newest != "" && !strings.Contains(filepath.Base(newest), "new.") {
			return newest
		}
		if out, err := exec.Command(filepath.Join(root, "scripts/invm"), "/bin/true").CombinedOutput(); err != nil {
			t.Logf("scripts/invm: %v\n%s", err, out)
		}
	}
	t.Fatal("scripts/invm has made no kernel")
	return ""
}

func TestContract(t *testing.T) {
	cfg := guestConfig(t)
	vmtest.Run(t, New(Options{CacheDir: t.TempDir()}), cfg)
}

// TestContractSerial has QEMU as it is on hosts without vhost-user: the streams go
// through a serial port, and QEMU connects to names, as it has to on Windows.
func TestContractSerial(t *testing.T) {
	cfg := guestConfig(t)
	d := New(Options{CacheDir: t.TempDir(), Serial: true})
	d.layout = named{}
	vmtest.Run(t, d, cfg)
}
