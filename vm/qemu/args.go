package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/berthvm/berth/vm"
)

// spec is all that QEMU's arguments follow from.
type spec struct {
	cfg     vm.Config
	arch    string // GOARCH
	accel   string // KVM or TCG
	sandbox bool
	fds     sockets
}

// sockets are the descriptors QEMU inherits; a zero one is absent.
type sockets struct {
	qmp     int // listening
	console int // connected, like the rest
	vsock   int
	net     int
	shares  []int // in the order of Config.Shares
}

// argv is QEMU's command line, without the program.
func (s spec) argv() []string {
	args := slices.Concat(
		nameArgs(s.cfg.Name),
		machineArgs(s.arch, s.accel),
		cpuArgs(s.arch, s.accel, s.cfg.CPUs),
		memoryArgs(s.cfg.MemoryMiB),
		bootArgs(s),
		monitorArgs(s.fds.qmp),
		consoleArgs(s.fds.console),
		rngArgs(),
		balloonArgs(),
		vsockArgs(s.fds.vsock),
	)
	for i, d := range s.cfg.Disks {
		args = append(args, diskArgs(i, d)...)
	}
	if s.cfg.Network != nil && s.fds.net != 0 {
		args = append(args, netArgs(s.fds.net, s.cfg.Network.MAC())...)
	}
	for i, fd := range s.fds.shares {
		args = append(args, shareArgs(i, fd, s.cfg.Shares[i].Tag)...)
	}
	return append(args, sandboxArgs(s.sandbox)...)
}

// nameArgs titles the process, for ps and top. Nothing but these arguments
// configures QEMU, and the machine waits for "cont".
func nameArgs(name string) []string {
	return []string{
		"-name", "guest=berth-" + name + ",process=berth-" + name + ",debug-threads=on",
		"-no-user-config", "-nodefaults", "-display", "none", "-S",
	}
}

// machineArgs picks the board, and leaves off what the guest would only spend
// time on at boot.
func machineArgs(arch, accel string) []string {
	machine := "q35,smm=off,smbus=off,sata=off,usb=off,vmport=off,hpet=off,i8042=off"
	if arch == "arm64" {
		machine = "virt,gic-version=max"
	}
	accelerator := accel
	if accel == TCG {
		// Translated code is kept in up to a gigabyte by default, and never given
		// back; booting and running a few containers needs an eighth of that.
		accelerator = "tcg,thread=multi,tb-size=256"
	}
	return []string{"-machine", machine + ",memory-backend=mem,dump-guest-core=off", "-accel", accelerator}
}

func cpuArgs(arch, accel string, cpus int) []string {
	model := "host"
	if accel == TCG {
		switch arch {
		case "amd64":
			model = "max,-erms" // "rep movsb" is emulated byte by byte
		case "arm64":
			model = "max,pauth-impdef=on" // the architected algorithm costs three times the boot
		default:
			model = "max"
		}
	}
	return []string{"-cpu", model, "-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", cpus, cpus)}
}

// memoryArgs makes memory that the vhost-user devices can share.
func memoryArgs(mib int) []string {
	return []string{
		"-m", fmt.Sprintf("size=%dM", mib),
		"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", mib),
	}
}

func bootArgs(s spec) []string {
	args := []string{"-kernel", s.cfg.Kernel}
	if s.cfg.Initrd != "" {
		args = append(args, "-initrd", s.cfg.Initrd)
	}
	return append(args, "-append", strings.Join(cmdline(s), " "))
}

// cmdline is the kernel's: what the devices need, then what cfg says, which can
// override it.
func cmdline(s spec) []string {
	console := "console=ttyS0"
	if s.arch == "arm64" {
		console = "console=ttyAMA0"
	}
	args := []string{console}
	if s.arch == "amd64" && s.accel == TCG {
		// The kernel distrusts an emulated TSC and would read a slower clock.
		args = append(args, "tsc=reliable")
	}
	return append(args, s.cfg.Cmdline...)
}

func monitorArgs(fd int) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fd),
		"-mon", "chardev=qmp,mode=control",
	}
}

// consoleArgs attach the serial port, which shows a kernel's first words too.
func consoleArgs(fd int) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd),
		"-serial", "chardev:console",
	}
}

func rngArgs() []string {
	return []string{"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,disable-legacy=on"}
}

// balloonArgs return the memory that the guest frees to the host.
func balloonArgs() []string {
	return []string{"-device", "virtio-balloon-pci,free-page-reporting=on,disable-legacy=on"}
}

func vsockArgs(fd int) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=vsock,fd=%d", fd),
		"-device", "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
	}
}

// diskArgs attach one raw image. QEMU's defaults for the cache are the ones of
// cache=writeback: writes go to the host's page cache, a flush is an fdatasync.
func diskArgs(i int, d vm.Disk) []string {
	node := fmt.Sprintf("disk%d", i)
	blockdev, err := json.Marshal(map[string]any{
		"driver":    "raw",
		"node-name": node,
		"read-only": d.ReadOnly,
		"discard":   "unmap",
		"file": map[string]any{
			"driver":    "file",
			"filename":  d.Path,
			"read-only": d.ReadOnly,
			"discard":   "unmap",
			"locking":   "on",
		},
	})
	if err != nil {
		panic(err) // a map of strings and booleans
	}
	device := "virtio-blk-pci,drive=" + node + ",disable-legacy=on"
	if !d.ReadOnly {
		device += ",write-cache=on"
	}
	if d.Serial != "" {
		device += ",serial=" + d.Serial
	}
	return []string{"-blockdev", string(blockdev), "-device", device}
}

func netArgs(fd int, mac net.HardwareAddr) []string {
	return []string{
		"-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fd),
		"-device", "virtio-net-pci,netdev=net,mac=" + mac.String() + ",romfile=,disable-legacy=on",
	}
}

// shareArgs attach one shared folder. The queue is as long as QEMU allows, so
// that many small requests can be under way.
func shareArgs(i, fd int, tag string) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=share%d,fd=%d", i, fd),
		"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=share%d,tag=%s,queue-size=1024", i, tag),
	}
}

// sandboxArgs forbid QEMU what it needs no more once it runs.
func sandboxArgs(supported bool) []string {
	if !supported {
		return nil
	}
	return []string{"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}
}
