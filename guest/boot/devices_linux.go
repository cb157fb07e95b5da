package boot

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire/devices"
)

// hypervisor is what the kernel's command line says of the machine's devices, see
// guest/wire/devices.
type hypervisor struct {
	hyperV  bool
	cable   bool             // the network is a stream
	mac     net.HardwareAddr // of the cable's tap
	disks   []string         // serials of SCSI disks by LUN
	rosetta bool             // may have its folder attached
	restart bool             // has to be announced
}

func readHypervisor(cmdline string) hypervisor {
	return hypervisor{
		hyperV: devices.Has(cmdline, devices.HyperV),
		cable:  devices.Has(cmdline, devices.Cable), mac: devices.FindMAC(cmdline),
		disks: devices.FindDisks(cmdline), restart: devices.Has(cmdline, devices.Restart),
		rosetta: devices.Has(cmdline, devices.Rosetta),
	}
}

// baseModules are the groups that have to be there before the root's disk is.
func (h hypervisor) baseModules() []string {
	groups := []string{"mmio", "base", "disk"}
	if h.disks != nil {
		groups = append(groups, "scsi")
	}
	if h.hyperV {
		groups = append(groups, "hyperv", "hyperv-disk")
	}
	return groups
}

// vsockModules are the groups that lead to the host. A kernel has one way there:
// virtio's module takes it also where there is no such device.
func (h hypervisor) vsockModules() []string {
	if h.hyperV {
		return []string{"vsock", "hyperv-vsock"}
	}
	return []string{"vsock", "virtio-vsock"}
}

// netModules are the groups of the network card.
func (h hypervisor) netModules() []string {
	if h.cable {
		return []string{"cable"}
	}
	return []string{"net"}
}

// coreModules are the groups that are loaded beside the engine's start.
func (h hypervisor) coreModules() []string {
	groups := []string{"container", "netfilter", "device"}
	if h.hyperV {
		groups = append(groups, "hyperv")
	}
	return groups
}

// hasSerial tells whether the disk with that name below block, which is /sys/block,
// has the serial.
func (h hypervisor) hasSerial(block, disk, serial string) bool {
	// virtio has it on the disk, SCSI and others on the device.
	for _, attribute := range []string{"serial", "device/serial"} {
		text, err := os.ReadFile(filepath.Join(block, disk, attribute))
		if err == nil && strings.TrimSpace(string(text)) == serial {
			return true
		}
	}
	lun := slices.Index(h.disks, serial)
	if lun < 0 {
		return false
	}
	device, err := os.Readlink(filepath.Join(block, disk, "device"))
	if err != nil {
		return false
	}
	_, at, ok := strings.Cut(filepath.Base(device), ":") // host:channel:target:LUN
	return ok && at == "0:0:"+strconv.Itoa(lun)
}

// plugCable makes the tap device named card, and has its frames carried by a stream
// for the rest of the boot. The module is loaded.
func (h hypervisor) plugCable(l *link, log func(error)) error {
	tap, err := openTap(card, h.mac)
	if err != nil {
		return fmt.Errorf("make the network device: %w", err)
	}
	stream, err := l.dial(devices.CablePort)
	if err != nil {
		return errors.Join(err, tap.Close())
	}
	go func() {
		err := devices.Send(stream, tap)
		stream.Close()
		log(err)
	}()
	go func() {
		err := devices.Receive(tap, stream)
		tap.Close()
		log(err)
	}()
	return nil
}

// openTap makes a tap device. It vanishes with its file.
func openTap(name string, mac net.HardwareAddr) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil && mac != nil {
		err = setMAC(fd, name, mac)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// setMAC gives a tap its address.
func setMAC(tap int, name string, mac net.HardwareAddr) error {
	var req struct { // struct ifreq with a sockaddr
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [22]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	req.family = unix.ARPHRD_ETHER
	copy(req.data[:], mac)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(tap), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("set the hardware address %v: %w", mac, errno)
	}
	return nil
}

// announcePatience bounds what the host may take to hear of a restart.
const announcePatience = 5 * time.Second

// announceRestart tells a host that has to know that this guest will restart, and
// waits until it does.
func (h hypervisor) announceRestart(l *link) error {
	if !h.restart {
		return nil
	}
	s, err := l.dial(devices.RestartPort)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(announcePatience)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, s)
	return err
}
