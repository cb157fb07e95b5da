package boot

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berthvm/berth/guest/wire/devices"
)

func TestReadHypervisor(t *testing.T) {
	h := readHypervisor("quiet root=x")
	if h.hyperV || h.cable || h.restart || h.disks != nil {
		t.Errorf("an ordinary machine: %+v", h)
	}
	if err := h.announceRestart(nil); err != nil { // nobody wants to know
		t.Error(err)
	}
	if !slices.Contains(h.vsockModules(), "virtio-vsock") || !slices.Contains(h.netModules(), "net") || slices.Contains(h.baseModules(), "hyperv") {
		t.Errorf("modules of an ordinary machine: %v %v %v", h.baseModules(), h.vsockModules(), h.netModules())
	}
	h = readHypervisor("quiet " + devices.HyperV + " " + devices.Cable + " " + devices.Restart + " " + devices.Disks([]string{"a", "b"}))
	if !h.hyperV || !h.cable || !h.restart || len(h.disks) != 2 {
		t.Errorf("Hyper-V: %+v", h)
	}
	if slices.Contains(h.vsockModules(), "virtio-vsock") || slices.Contains(h.netModules(), "net") || !slices.Contains(h.coreModules(), "hyperv") {
		t.Errorf("modules on Hyper-V: %v %v %v", h.vsockModules(), h.netModules(), h.coreModules())
	}
}

func TestHasSerial(t *testing.T) {
	block := t.TempDir()
	disk := func(name, device string) {
		if err := os.MkdirAll(filepath.Join(block, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../devices/"+device, filepath.Join(block, name, "device")); err != nil {
			t.Fatal(err)
		}
	}
	disk("sda", "host0/target0:0:0/0:0:0:0")
	disk("sdb", "host0/target0:0:0/0:0:0:1")
	disk("sdc", "host1/target1:0:1/1:0:1:0")
	disk("vda", "virtio0")
	if err := os.WriteFile(filepath.Join(block, "vda", "serial"), []byte("root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := hypervisor{disks: []string{"root", "data"}}
	for _, c := range []struct {
		disk, serial string
		want         bool
	}{
		{"sda", "root", true}, {"sda", "data", false}, {"sdb", "data", true}, {"sdc", "root", false},
		{"vda", "root", true}, {"sda", "other", false}, {"none", "root", false},
	} {
		if got := h.hasSerial(block, c.disk, c.serial); got != c.want {
			t.Errorf("%s has the serial %s: %t", c.disk, c.serial, got)
		}
	}
	if (hypervisor{}).hasSerial(block, "sda", "root") {
		t.Error("a LUN counts although the host names none")
	}
}
