package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/berthvm/berth/guest/wire/muxed"
	"github.com/berthvm/berth/vm"
)

// spec is all that QEMU's arguments follow from.
type spec struct {
	cfg     vm.Config
	goos    string // of the host
	arch    string // GOARCH
	accel   string // KVM, HVF, WHPX or TCG
	cpu     string // the model
	tscKHz  int    // of the host's time-stamp counter; 0 when it is not known
	serial  bool   // a serial port in place of what needs vhost-user
	packets bool   // the network device is in this process, by vhost-user
	sandbox bool
	restore bool // the state comes by the monitor
	plugs   plugs
}

// argv is QEMU's command line, without the program.
func (s spec) argv() []string {
	args := slices.Concat(
		nameArgs(s.cfg.Name, s.goos),
		machineArgs(s.arch, s.accel, s.goos, s.cfg.CPUs),
		cpuArgs(s.cpu, s.cfg.CPUs),
		memoryArgs(s.cfg.MemoryMiB, !s.serial),
		bootArgs(s),
		monitorArgs(s.plugs.qmp),
		consoleArgs(s.plugs.console),
		rngArgs(),
		balloonArgs(s.goos),
		incomingArgs(s.restore),
	)
	if s.serial {
		args = append(args, serialArgs(s.plugs.streams)...)
	} else {
		args = append(args, vsockArgs(s.plugs.streams)...)
	}
	for i, d := range s.cfg.Disks {
		args = append(args, diskArgs(i, d, s.goos)...)
	}
	if s.cfg.Network != nil && !s.plugs.net.none() {
		args = append(args, netArgs(s.plugs.net, s.cfg.Network.MAC(), s.packets, s.accel)...)
	}
	for i, p := range s.plugs.shares {
		args = append(args, shareArgs(i, p, s.cfg.Shares[i].Tag)...)
	}
	return append(args, sandboxArgs(s.sandbox)...)
}

// nameArgs titles the process, for ps and top, where QEMU can: on a Mac it refuses to
// start. Nothing but these arguments configures QEMU, and the machine waits for "cont".
func nameArgs(name, goos string) []string {
	title := "guest=berth-" + name
	if goos == "linux" {
		title += ",process=berth-" + name + ",debug-threads=on"
	}
	return []string{"-name", title, "-no-user-config", "-nodefaults", "-display", "none", "-S"}
}

// machineArgs picks the board, and leaves off what the guest would only spend
// time on at boot.
func machineArgs(arch, accel, goos string, cpus int) []string {
	machine := "q35,smm=off,smbus=off,sata=off,usb=off,vmport=off,hpet=off,i8042=off"
	if arch == "arm64" {
		machine = "virt,gic-version=" + gicVersion(accel, cpus)
	}
	machine += ",memory-backend=mem"
	if goos == "linux" { // QEMU 9.1 refuses to start where the system cannot
		machine += ",dump-guest-core=off"
	}
	accelerator := accel
	switch {
	case accel == TCG:
		// Translated code is kept in up to a gigabyte by default, and never given
		// back; booting and running a few containers needs an eighth of that.
		accelerator = "tcg,thread=multi,tb-size=256"
	case accel == WHPX && arch == "amd64":
		accelerator = "whpx,kernel-irqchip=off" // the other loses interrupts
	}
	return []string{"-machine", machine, "-accel", accelerator}
}

// gicVersion picks arm64's interrupt controller. With HVF, QEMU before 8.0 has the
// second version alone, which is for a few CPUs.
func gicVersion(accel string, cpus int) string {
	const few = 8
	switch {
	case accel != HVF:
		return "max"
	case cpus > few:
		return "3"
	}
	return "2"
}

// cpuModels are the models to try, best first.
func cpuModels(arch, accel string) []string {
	switch {
	case accel == WHPX && arch == "amd64":
		// QEMU has learned late to show the host's own there.
		return []string{"host", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+aes"}
	case accel != TCG:
		return []string{"host"}
	case arch == "amd64":
		return []string{"max,-erms"} // "rep movsb" is emulated byte by byte
	case arch == "arm64":
		return []string{"max,pauth-impdef=on"} // the architected algorithm costs three times the boot
	}
	return []string{"max"}
}

func cpuArgs(model string, cpus int) []string {
	return []string{"-cpu", model, "-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", cpus, cpus)}
}

// memoryArgs makes memory; what vhost-user devices can share is a memfd.
func memoryArgs(mib int, shared bool) []string {
	backend := fmt.Sprintf("memory-backend-ram,id=mem,size=%dM", mib)
	if shared {
		backend = fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", mib)
	}
	return []string{"-m", fmt.Sprintf("size=%dM", mib), "-object", backend}
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
		// The kernel distrusts an emulated TSC and would read a slower clock. It also
		// tries whether the timer interrupts, and panics when a busy host keeps the
		// machine from running meanwhile.
		args = append(args, "tsc=reliable", "no_timer_check")
		if s.tscKHz > 0 {
			args = append(args, fmt.Sprintf("tsc_early_khz=%d", s.tscKHz))
		}
	}
	if s.serial {
		args = append(args, muxed.Param)
	}
	return append(args, s.cfg.Cmdline...)
}

func monitorArgs(p plug) []string {
	return []string{
		"-chardev", "socket,id=qmp," + p.address() + ",server=on,wait=off",
		"-mon", "chardev=qmp,mode=control",
	}
}

// consoleArgs attach the serial port, which shows a kernel's first words too.
func consoleArgs(p plug) []string {
	return []string{
		"-chardev", "socket,id=console," + p.address(),
		"-serial", "chardev:console",
	}
}

func rngArgs() []string {
	return []string{"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,disable-legacy=on"}
}

// balloonArgs return the memory that the guest frees to the host, and what the host
// asks for. A guest that would have to kill for want of memory takes it back. On
// Windows QEMU can return nothing, and would say so for each piece.
func balloonArgs(goos string) []string {
	device := "virtio-balloon-pci,id=balloon,deflate-on-oom=on,disable-legacy=on"
	if goos != "windows" {
		device += ",free-page-reporting=on"
	}
	return []string{"-device", device}
}

// incomingArgs have QEMU wait for a saved state.
func incomingArgs(restore bool) []string {
	if !restore {
		return nil
	}
	return []string{"-incoming", "defer"}
}

func vsockArgs(p plug) []string {
	return []string{
		"-chardev", "socket,id=vsock," + p.address(),
		"-device", "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
	}
}

// serialArgs attach the virtio-serial port that carries streams.
func serialArgs(p plug) []string {
	return []string{
		"-chardev", "socket,id=streams," + p.address(),
		"-device", "virtio-serial-pci,id=ports,max_ports=2,disable-legacy=on",
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=streams,name=" + muxed.PortName,
	}
}

// diskArgs attach one raw image. QEMU's defaults for the cache are the ones of
// cache=writeback: writes go to the host's page cache, a flush is an fdatasync.
func diskArgs(i int, d vm.Disk, goos string) []string {
	locking := "auto" // where QEMU can
	if goos == "linux" {
		locking = "on"
	}
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
			"locking":   locking,
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

// netArgs attach the network device, which is in this process or sends it frames. In
// this process it has one line interrupt where QEMU emulates: QEMU 7.2 crashes when
// vhost-user's device has message-signalled interrupts that no kernel delivers.
func netArgs(p plug, mac net.HardwareAddr, packets bool, accel string) []string {
	address := fmt.Sprintf("addr.type=fd,addr.str=%d", p.fd)
	if p.fd == 0 {
		address = "addr.type=unix,addr.path=" + escape(p.path)
	}
	device := []string{"-device", "virtio-net-pci,netdev=net,mac=" + mac.String() + ",romfile=,disable-legacy=on"}
	if packets {
		if accel == TCG {
			device[1] += ",vectors=0"
		}
		return append([]string{"-chardev", "socket,id=net," + p.address(), "-netdev", "vhost-user,id=net,chardev=net"}, device...)
	}
	return append([]string{"-netdev", "stream,id=net,server=off," + address}, device...)
}

// shareArgs attach one shared folder. The queue is as long as QEMU allows, so
// that many small requests can be under way.
func shareArgs(i int, p plug, tag string) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=share%d,%s", i, p.address()),
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
