// Package muxed carries many streams over one pipe of bytes. Where QEMU has no
// vhost-user, which is everywhere but on Linux, host and guest have no vsock but
// one virtio-serial port, and this package makes of it what vsock is: streams
// that are addressed by port, close by halves and hold each other up no more than
// they must. Host and guest run the same code.
//
// # Who decides
//
// The host's driver does, by the kernel parameter Param: the guest then opens the
// virtio-serial port called PortName, and has no vsock.
//
// # Handshake
//
// A pipe outlives the guest's restarts, and holds the rest of what the kernels
// before have sent and were sent. So each boot begins with random numbers:
//
//	guest → host  Magic 'S' nonce         again and again, until it is answered
//	host → guest  Magic 'A' nonce answer  once for each nonce
//	guest → host  Magic 'G' answer        frames follow, both ways
//
// Each side drops what comes before the message it waits for.
//
// A guest whose machine was saved goes on in the midst of a session with a host
// that knows nothing of it. The host begins with Interrupt, which breaks any
// session; then the guest begins with a handshake.
//
// # Frames
//
// A frame is a kind (one byte), a stream's number and a value (four bytes each,
// big-endian). The value of a data frame is the number of bytes, at most maxData,
// that follow it.
//
//	open    value is the port; the sender has chosen the number
//	accept  answers open
//	reset   answers open: refused; at any other time: the stream is broken
//	data    at most so many bytes in all as the receiver has given credit for
//	credit  value is a number of bytes that the sender has read
//	end     the sender has no more data
//	stop    the sender reads no more
//
// Guests number their streams odd and hosts even, both upwards; no number is used
// twice. Each direction begins with a credit of Window bytes. A stream is over
// when each direction has ended or was stopped. What comes for a stream that is
// over is dropped; what breaks any other of these rules ends the session.
//
// A Session takes for granted that the other end is hostile: it holds no more
// than Window bytes for each of at most maxStreams streams that the other end has
// opened, and never waits for the other end while it reads from it.
package muxed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// Param is the kernel parameter that says: there is no vsock, but the port.
	Param = "berth.streams=muxed"
	// PortName is the virtio-serial port's name.
	PortName = "berth.streams"
	// Window is the number of bytes of one direction of a stream that may be under
	// way, unread.
	Window = 256 << 10
)

const (
	maxData    = 32 << 10 // bytes in a data frame
	maxStreams = 1024     // that the other end has opened
	maxRefused = 1024     // refusals that the other end has not read yet

	headerSize = 9
)

// ErrProtocol is why a session ended whose other end broke the rules.
var ErrProtocol = errors.New("muxed: the other end breaks the protocol")

// Requested tells whether a kernel's command line has Param.
func Requested(cmdline string) bool {
	return slices.Contains(strings.Fields(cmdline), Param)
}

type kind byte

const (
	kindOpen kind = iota + 1
	kindAccept
	kindReset
	kindData
	kindCredit
	kindEnd
	kindStop
)

type header struct {
	kind  kind
	id    uint32
	value uint32
}

func (h header) appendTo(b []byte) []byte {
	b = append(b, byte(h.kind))
	b = binary.BigEndian.AppendUint32(b, h.id)
	return binary.BigEndian.AppendUint32(b, h.value)
}

// readHeader reads the next frame's, and says what is wrong with it by itself.
func readHeader(r io.Reader) (header, error) {
	var raw [headerSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return header{}, err
	}
	h := header{kind(raw[0]), binary.BigEndian.Uint32(raw[1:]), binary.BigEndian.Uint32(raw[5:])}
	switch {
	case h.kind < kindOpen || h.kind > kindStop:
		return h, fmt.Errorf("%w: a frame of kind %d", ErrProtocol, h.kind)
	case h.kind == kindData && (h.value == 0 || h.value > maxData):
		return h, fmt.Errorf("%w: a data frame of %d bytes", ErrProtocol, h.value)
	}
	return h, nil
}
