package wire

import "strconv"

// Where the guest has no vsock but one serial port (package muxed), PID 1 has the
// port, because a boot must outlive the engine. Other programs of the guest reach
// the host through unix sockets in StreamsDir, which root alone may use:
//
//   - Who listens on a port listens on StreamSocket(port). A stream of the host's
//     to that port is a connection to it.
//   - Who dials the host connects to HostSocket and sends the port as four bytes,
//     big-endian. PID 1 answers with the byte StreamOpen, or hangs up when the host
//     refuses. The stream follows.
//
// Both have half-close.
const (
	StreamsDir = "/run/berth/streams"
	HostSocket = StreamsDir + "/host"
	StreamOpen = 1
)

// StreamSocket is the socket for a port of the guest.
func StreamSocket(port uint32) string {
	return StreamsDir + "/" + strconv.FormatUint(uint64(port), 10)
}
