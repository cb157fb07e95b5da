package qemu

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/wire/muxed"
	"github.com/berthvm/berth/vm"
)

// card is a network of which only the address matters.
type card struct{ mac net.HardwareAddr }

func (c card) MAC() net.HardwareAddr                       { return c.mac }
func (card) ServeStream(context.Context, net.Conn) error   { return nil }
func (card) ServeDatagram(context.Context, net.Conn) error { return nil }

func TestDeviceArgs(t *testing.T) {
	tests := []struct {
		name string
		got  []string
		want []string
	}{
		{"name", nameArgs("dev", "linux"), []string{
			"-name", "guest=berth-dev,process=berth-dev,debug-threads=on",
			"-no-user-config", "-nodefaults", "-display", "none", "-S",
		}},
		{"machine amd64 tcg", machineArgs("amd64", TCG, "linux", 4), []string{
			"-machine", "q35,smm=off,smbus=off,sata=off,usb=off,vmport=off,hpet=off,i8042=off,memory-backend=mem,dump-guest-core=off",
			"-accel", "tcg,thread=multi,tb-size=256",
		}},
		{"machine amd64 kvm", machineArgs("amd64", KVM, "linux", 4)[2:], []string{"-accel", "kvm"}},
		{"machine arm64", machineArgs("arm64", TCG, "linux", 9), []string{
			"-machine", "virt,gic-version=max,memory-backend=mem,dump-guest-core=off", "-accel", "tcg,thread=multi,tb-size=256",
		}},
		{"machine arm64 hvf", machineArgs("arm64", HVF, "darwin", 8), []string{
			"-machine", "virt,gic-version=2,memory-backend=mem", "-accel", "hvf",
		}},
		{"machine arm64 hvf, many CPUs", machineArgs("arm64", HVF, "darwin", 9)[:2], []string{
			"-machine", "virt,gic-version=3,memory-backend=mem",
		}},
		{"machine amd64 whpx", machineArgs("amd64", WHPX, "windows", 4)[2:], []string{"-accel", "whpx,kernel-irqchip=off"}},
		{"machine arm64 whpx", machineArgs("arm64", WHPX, "windows", 4)[2:], []string{"-accel", "whpx"}},
		{"cpu", cpuArgs("host", 4), []string{"-cpu", "host", "-smp", "cpus=4,sockets=1,cores=4,threads=1"}},
		{"models amd64 tcg", cpuModels("amd64", TCG), []string{"max,-erms"}},
		{"models arm64 tcg", cpuModels("arm64", TCG), []string{"max,pauth-impdef=on"}},
		{"models kvm", cpuModels("amd64", KVM), []string{"host"}},
		{"models hvf", cpuModels("arm64", HVF), []string{"host"}},
		{"models whpx", cpuModels("amd64", WHPX), []string{"host", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+aes"}},
		{"memory", memoryArgs(512, true), []string{
			"-m", "size=512M", "-object", "memory-backend-memfd,id=mem,size=512M,share=on",
		}},
		{"private memory", memoryArgs(512, false), []string{"-m", "size=512M", "-object", "memory-backend-ram,id=mem,size=512M"}},
		{"named monitor", monitorArgs(plug{path: `C:\a,b\qmp.sock`})[:2], []string{
			"-chardev", `socket,id=qmp,path=C:\a,,b\qmp.sock,server=on,wait=off`,
		}},
		{"named console", consoleArgs(plug{path: "/m/console.sock"})[:2], []string{"-chardev", "socket,id=console,path=/m/console.sock"}},
		{"serial", serialArgs(plug{fd: 5}), []string{
			"-chardev", "socket,id=streams,fd=5", "-device", "virtio-serial-pci,id=ports,max_ports=2,disable-legacy=on",
			"-device", "virtserialport,bus=ports.0,nr=1,chardev=streams,name=berth.streams",
		}},
		{"named net", netArgs(plug{path: "/m/n,t.sock"}, net.HardwareAddr{2, 0, 0, 0, 0, 1}, false, KVM)[:2], []string{
			"-netdev", "stream,id=net,server=off,addr.type=unix,addr.path=/m/n,,t.sock",
		}},
		{"monitor", monitorArgs(plug{fd: 3}), []string{
			"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		}},
		{"console", consoleArgs(plug{fd: 4}), []string{"-chardev", "socket,id=console,fd=4", "-serial", "chardev:console"}},
		{"rng", rngArgs(), []string{"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,disable-legacy=on"}},
		{"balloon", balloonArgs("darwin"), []string{"-device", "virtio-balloon-pci,id=balloon,deflate-on-oom=on,disable-legacy=on,free-page-reporting=on"}},
		{"vsock", vsockArgs(plug{fd: 5}), []string{
			"-chardev", "socket,id=vsock,fd=5", "-device", "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
		}},
		{"net", netArgs(plug{fd: 6}, net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}, false, TCG), []string{
			"-netdev", "stream,id=net,server=off,addr.type=fd,addr.str=6",
			"-device", "virtio-net-pci,netdev=net,mac=5a:94:ef:e4:0c:ee,romfile=,disable-legacy=on",
		}},
		{"net by vhost-user", netArgs(plug{fd: 6}, net.HardwareAddr{2, 0, 0, 0, 0, 1}, true, KVM), []string{
			"-chardev", "socket,id=net,fd=6", "-netdev", "vhost-user,id=net,chardev=net",
			"-device", "virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,romfile=,disable-legacy=on",
		}},
		{"net by vhost-user emulated", netArgs(plug{fd: 6}, net.HardwareAddr{2, 0, 0, 0, 0, 1}, true, TCG)[5:], []string{
			"virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,romfile=,disable-legacy=on,vectors=0",
		}},
		{"share", shareArgs(1, plug{fd: 7}, "home"), []string{
			"-chardev", "socket,id=share1,fd=7", "-device", "vhost-user-fs-pci,chardev=share1,tag=home,queue-size=1024",
		}},
		{"sandbox", sandboxArgs(true), []string{"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}},
		{"no sandbox", sandboxArgs(false), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !slices.Equal(tt.got, tt.want) {
				t.Errorf("got  %q\nwant %q", tt.got, tt.want)
			}
		})
	}
}

func TestDiskArgs(t *testing.T) {
	tests := []struct {
		name     string
		disk     vm.Disk
		device   string
		filename string
		readOnly bool
	}{
		{"plain", vm.Disk{Path: "/d"}, "virtio-blk-pci,drive=disk7,disable-legacy=on,write-cache=on", "/d", false},
		{"system", vm.Disk{Path: "/s", ReadOnly: true, Serial: "system"}, "virtio-blk-pci,drive=disk7,disable-legacy=on,serial=system", "/s", true},
		{"odd path", vm.Disk{Path: `/a,b="c"\ d`, Serial: "x"}, "virtio-blk-pci,drive=disk7,disable-legacy=on,write-cache=on,serial=x", `/a,b="c"\ d`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := diskArgs(7, tt.disk, "linux")
			if len(args) != 4 || args[0] != "-blockdev" || args[2] != "-device" {
				t.Fatalf("args = %q", args)
			}
			if args[3] != tt.device {
				t.Errorf("device = %q, want %q", args[3], tt.device)
			}
			var node struct {
				Driver, Discard string
				NodeName        string `json:"node-name"`
				ReadOnly        bool   `json:"read-only"`
				File            struct {
					Driver, Filename, Discard, Locking string
					ReadOnly                           bool `json:"read-only"`
				}
			}
			if err := json.Unmarshal([]byte(args[1]), &node); err != nil {
				t.Fatal(err)
			}
			f := node.File
			if node.Driver != "raw" || node.Discard != "unmap" || node.NodeName != "disk7" || node.ReadOnly != tt.readOnly ||
				f.Driver != "file" || f.Filename != tt.filename || f.Discard != "unmap" || f.Locking != "on" || f.ReadOnly != tt.readOnly {
				t.Errorf("blockdev = %s", args[1])
			}
		})
	}
}

func TestCmdline(t *testing.T) {
	tests := []struct {
		arch, accel string
		tscKHz      int
		want        string
	}{
		{"amd64", TCG, 2500000, "console=ttyS0 tsc=reliable no_timer_check tsc_early_khz=2500000 quiet a=b"},
		{"amd64", TCG, 0, "console=ttyS0 tsc=reliable no_timer_check quiet a=b"},
		{"amd64", KVM, 2500000, "console=ttyS0 quiet a=b"},
		{"arm64", TCG, 2500000, "console=ttyAMA0 quiet a=b"},
	}
	for _, tt := range tests {
		s := spec{cfg: vm.Config{Cmdline: []string{"quiet", "a=b"}}, arch: tt.arch, accel: tt.accel, tscKHz: tt.tscKHz}
		if got := strings.Join(cmdline(s), " "); got != tt.want {
			t.Errorf("%s %s: cmdline = %q, want %q", tt.arch, tt.accel, got, tt.want)
		}
	}
}

func TestArgv(t *testing.T) {
	s := spec{
		cfg: vm.Config{
			Name: "dev", CPUs: 2, MemoryMiB: 512, Kernel: "/k", Initrd: "/i",
			Disks: []vm.Disk{{Path: "/a"}, {Path: "/b"}},
		},
		arch: "amd64", accel: TCG,
		goos:  "linux",
		plugs: plugs{qmp: plug{fd: 3}, console: plug{fd: 4}, streams: plug{fd: 5}, net: plug{fd: 6}},
	}
	bare := s.argv()
	count := func(args []string, text string) int {
		n := 0
		for _, a := range args {
			if strings.Contains(a, text) {
				n++
			}
		}
		return n
	}
	if got := count(bare, "virtio-net"); got != 0 {
		t.Error("a machine without a network has a network device")
	}
	if got := count(bare, "virtio-blk-pci,drive=disk"); got != 2 {
		t.Errorf("%d disks, want 2", got)
	}
	a, b := slices.IndexFunc(bare, func(s string) bool { return strings.Contains(s, "drive=disk0") }),
		slices.IndexFunc(bare, func(s string) bool { return strings.Contains(s, "drive=disk1") })
	if a > b {
		t.Error("the disks are not in order")
	}
	s.cfg.Network = card{net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	if got := count(s.argv(), "virtio-net-pci"); got != 1 {
		t.Errorf("%d network devices, want 1", got)
	}
	if count(s.argv(), "memfd") != 1 || count(s.argv(), "vhost-user-vsock") != 1 || count(s.argv(), muxed.Param) != 0 {
		t.Errorf("a machine with vhost-user: %q", s.argv())
	}
	s.serial = true
	if count(s.argv(), "memfd") != 0 || count(s.argv(), "vhost-user") != 0 || count(s.argv(), "virtserialport") != 1 || count(s.argv(), muxed.Param) != 1 {
		t.Errorf("a machine with a serial port: %q", s.argv())
	}
	s.goos = "windows"
	if count(s.argv(), `"locking":"auto"`) != 2 {
		t.Error("QEMU on Windows refuses to lock disks")
	}
	s.cfg.Initrd = ""
	if slices.Contains(s.argv(), "-initrd") {
		t.Error("a machine without an initrd has one")
	}
}

// TestHosts has the whole command line for QEMU on each host, an argument a line, as
// the files in testdata have it, which UPDATE=1 writes anew. The paths are as their
// users have them.
func TestHosts(t *testing.T) {
	network := card{net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}}
	mac := vm.Config{
		Name: "dev", CPUs: 10, MemoryMiB: 4096, Kernel: "/Applications/My Tools, new/image/kernel", Initrd: "/Applications/My Tools, new/image/initramfs",
		Cmdline: []string{"quiet", "root=/dev/vda"}, Network: network,
		Disks: []vm.Disk{
			{Path: "/Applications/My Tools, new/image/root.erofs", ReadOnly: true, Serial: "berth-root"},
			{Path: "/Users/Jörg Müller/Library/Application Support/berth/data/dev/data.img", Serial: "berth-data"},
		},
	}
	inherited := plugs{qmp: plug{fd: 3}, console: plug{fd: 4}, streams: plug{fd: 5}, net: plug{fd: 6}}
	const run = `C:\Users\Jörg, M\AppData\Local\berth\run\dev\`
	windows := vm.Config{
		Name: "dev", CPUs: 4, MemoryMiB: 2048, Kernel: `C:\Program Files\Berth, new\image-amd64\vmlinux`, Initrd: `C:\Program Files\Berth, new\image-amd64\initramfs`,
		Cmdline: []string{"quiet", "root=/dev/vda"}, Network: network,
		Disks: []vm.Disk{
			{Path: `C:\Program Files\Berth, new\image-amd64\root.erofs`, ReadOnly: true, Serial: "berth-root"},
			{Path: `\\?\D:\Jörg "M"\data.img`, Serial: "berth-data"},
		},
	}
	named := plugs{qmp: plug{path: run + "qmp.sock"}, console: plug{path: run + "console.sock"}, streams: plug{path: run + "streams.sock"}, net: plug{path: run + "network.sock"}}
	for name, s := range map[string]spec{
		"darwin-arm64-hvf":   {cfg: mac, goos: "darwin", arch: "arm64", accel: HVF, plugs: inherited},
		"darwin-amd64-hvf":   {cfg: mac, goos: "darwin", arch: "amd64", accel: HVF, plugs: inherited},
		"windows-amd64-whpx": {cfg: windows, goos: "windows", arch: "amd64", accel: WHPX, plugs: named},
		"windows-amd64-tcg":  {cfg: windows, goos: "windows", arch: "amd64", accel: TCG, plugs: named, restore: true},
	} {
		s.serial, s.cpu = true, cpuModels(s.arch, s.accel)[0]
		got := strings.Join(s.argv(), "\n") + "\n"
		file := filepath.Join("testdata", name+".args")
		if os.Getenv("UPDATE") == "1" {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || got != string(want) {
			t.Errorf("%s: %v, got\n%swant\n%s", name, err, got, want)
		}
	}
}

// TestArgvShape holds what QEMU would answer with a confusing message: an
// empty argument.
func TestArgvShape(t *testing.T) {
	s := spec{cfg: vm.Config{Name: "dev", CPUs: 1, MemoryMiB: 256, Kernel: "/k", Initrd: "/i", Disks: []vm.Disk{{Path: "/a"}}}, arch: "amd64", accel: KVM, cpu: "host", sandbox: true}
	for _, a := range s.argv() {
		if a == "" {
			t.Fatalf("an argument is empty: %q", s.argv())
		}
	}
}
