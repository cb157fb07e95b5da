// Package devices is what host and guest agree on where the hypervisor lacks a
// device that the guest otherwise has. The host's driver says so by parameters of
// the kernel's command line: the guest has to know before its first stream.
//
// # Network
//
// Cable says that there is no network card. The guest makes a tap device, dials
// CablePort of the host, and carries Ethernet frames over the stream both ways,
// each behind its length as four bytes, big-endian: the framing of QEMU's "-netdev
// stream". The tap has the hardware address of MAC. When the stream breaks, the
// cable is out for the rest of the boot.
//
// # Disks
//
// Disks says what serials the disks would have if SCSI disks of this hypervisor
// had any: those of the LUNs 0, 1, ... of the machine's first target, in order,
// separated by commas.
//
// # Hyper-V
//
// HyperV says that this is the hypervisor, whose drivers the guest loads instead
// of virtio's.
//
// # Rosetta
//
// Rosetta says that there is a virtiofs device, tagged RosettaTag, whose folder
// holds Apple's interpreter of programs for amd64. Where the user has not installed
// that, the device is missing.
//
// # Restart
//
// Restart says that the hypervisor ends the machine when the guest restarts
// itself, and that the host is to start it again. A guest that restarts dials
// RestartPort before it does, and waits until the host ends the stream.
package devices

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
)

// The kernel parameters, see the package doc.
const (
	HyperV  = "berth.hypervisor=hyperv"
	Cable   = "berth.network=stream"
	Restart = "berth.restart=announced"
	Rosetta = "berth.rosetta=virtiofs"

	mac   = "berth.mac="
	disks = "berth.disks="
)

// RosettaTag is the tag of Rosetta's folder.
const RosettaTag = "berth-rosetta"

// The host's vsock ports, see the package doc.
const (
	RestartPort = 7
	CablePort   = 8
)

// MaxFrame is the longest Ethernet frame that a cable carries, in bytes: the
// longest IPv4 packet, and a header with a tag.
const MaxFrame = 65535 + 18

// ErrFrame is returned for a frame's length that is over MaxFrame.
var ErrFrame = errors.New("devices: an impossible length of a frame")

// Has tells whether a kernel's command line has a parameter.
func Has(cmdline, parameter string) bool {
	return slices.Contains(strings.Fields(cmdline), parameter)
}

// MAC is the parameter that gives the tap's hardware address.
func MAC(address net.HardwareAddr) string { return mac + address.String() }

// FindMAC finds it; nil when there is none, or none that is valid.
func FindMAC(cmdline string) net.HardwareAddr {
	address, err := net.ParseMAC(find(cmdline, mac))
	if err != nil || len(address) != 6 {
		return nil
	}
	return address
}

// Disks is the parameter that names the disks by their LUNs. Serials have no
// spaces and no commas.
func Disks(serials []string) string { return disks + strings.Join(serials, ",") }

// FindDisks finds the serials; nil when there is no such parameter.
func FindDisks(cmdline string) []string {
	list := find(cmdline, disks)
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func find(cmdline, prefix string) string {
	for _, p := range strings.Fields(cmdline) {
		if value, ok := strings.CutPrefix(p, prefix); ok {
			return value
		}
	}
	return ""
}

const frameHead = 4 // bytes

// Send carries the frames that card has to the stream, one for each Read, until one
// of the two fails.
func Send(stream io.Writer, card io.Reader) error {
	buf := make([]byte, frameHead+MaxFrame)
	for {
		n, err := card.Read(buf[frameHead:])
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if _, err := stream.Write(buf[:frameHead+n]); err != nil {
			return err
		}
	}
}

// Receive carries the stream's frames to card, each in one Write, until the stream
// fails; its end between two frames is no error. A frame that card refuses is lost,
// as on a wire.
func Receive(card io.Writer, stream io.Reader) error {
	r := bufio.NewReaderSize(stream, 64<<10)
	buf := make([]byte, MaxFrame)
	for {
		var head [frameHead]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > MaxFrame {
			return fmt.Errorf("%w: %d bytes", ErrFrame, size)
		}
		if _, err := io.ReadFull(r, buf[:size]); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		card.Write(buf[:size])
	}
}
