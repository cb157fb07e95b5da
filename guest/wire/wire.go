// Package wire specifies what host and guest say to each other over vsock. Both
// sides import it; it needs nothing but the standard library.
//
// # Ports
//
// The guest (CID 3) dials the host (CID 2) on the Port*Host ports, the host
// dials the guest on the others. One stream carries one conversation.
//
//	1  guest→host  hello      JSON frames, both ways, for the life of the boot
//	2  guest→host  loopback   Preamble, DialRequest, DialReply, then raw bytes
//	3  guest→host  publish    Preamble, PublishRequest, PublishReply; open while the stream is
//	4  guest→host  folder     Preamble, FolderRequest, then 9P2000.L
//	7  guest→host  restart    see guest/wire/devices, as of 8, the network cable
//	9  guest→host  boot       see guest/wire/framed
//	10 host→guest  control    HTTP/1.1 and JSON, served by the engine
//	11 host→guest  docker     raw bytes of the Docker Engine API
//	12 host→guest  ssh        the SSH protocol
//	13 host→guest  portal     PortalRequest, then the bytes of one published connection
//
// # Hello
//
// PID 1 opens the hello stream before it mounts anything but its own root, and
// keeps it open until the machine ends: when it breaks, the boot is over, unless
// the host has said that it will save the machine (see below). It
// sends a Hello; the host answers with a Welcome, whose Error is set when the
// two cannot work together. From then on the guest sends Notes (a phase of the
// boot began or ended, the engine restarted, a reply to an order) and the host
// sends Orders (shut down, restart, set the clock).
//
// The host accepts one hello per boot, and only from a guest that has been
// reset since the last: a second one is refused, without a word. The Welcome carries a secret,
// random for each boot; it opens every later guest→host stream (the Preamble:
// SecretSize raw bytes). The guest never shows the secret to a container, and
// AF_VSOCK is closed to containers, so a stream that starts with it comes from
// the guest's own programs.
//
// # Saving
//
// OpSave says that the machine will be saved. Before it replies, the guest lets go
// of what cannot be: folders that come over streams, which no container may use.
// From then on it says hello again and again, with the boot's secret, and a host
// that has restored the machine takes the secret over and answers: the boot goes
// on. Until then the hello stream may break for a while. OpStay takes OpSave back.
//
// # Published ports
//
// The guest asks for a listener on the host by opening a publish stream; the
// host listens before it replies, and until the guest closes the stream or the
// boot ends. For each connection to the listener the host opens a portal stream.
// TCP's bytes follow the PortalRequest raw, with half-close both ways. UDP has
// one stream for each of the clients' addresses, with each datagram behind its
// length as two bytes, big-endian; either side ends a stream on which nothing
// has come for FlowIdle.
//
// Where the host's end of the network cable is a TCP/IP stack next to a device of
// this process, one program less between a client and a container is what counts: a
// PublishRequest for TCP, and each PublishTarget after the reply, names the
// container's address, and the host connects to that through the guest as a router,
// without a portal stream. It opens one with the ID 0, which carries nothing, for the
// guest to know from time to time that its ports are in use.
//
// # Frames
//
// A frame is its body's length as four bytes, big-endian, and the body: one JSON
// value of at most MaxFrame bytes. Fields that a reader does not know are
// ignored; what the two must agree on changes Protocol.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Protocol is the version of everything in this package. Host and guest must
// have the same one: the guest's image belongs to the host program.
const Protocol = 1

// The vsock ports, see the package doc.
const (
	PortHelloHost    = 1
	PortLoopbackHost = 2
	PortPublishHost  = 3
	PortFolderHost   = 4

	PortControl = 10
	PortDocker  = 11
	PortSSH     = 12
	PortPortal  = 13
)

// HostCID and GuestCID are the two ends' vsock addresses.
const (
	HostCID  = 2
	GuestCID = 3
)

const (
	// MaxFrame is the largest body of a frame, in bytes.
	MaxFrame = 1 << 20
	// SecretSize is the length of a boot's secret, in bytes.
	SecretSize = 32
	// FlowIdle ends a UDP flow on which nothing has come for so long.
	FlowIdle = 60 * time.Second
	// MaxDatagram is the largest datagram of a flow, in bytes.
	MaxDatagram = 1<<16 - 1
)

// ErrFrameTooLarge is returned for a frame whose length is over MaxFrame.
var ErrFrameTooLarge = errors.New("wire: frame too large")

// Hello is the guest's first frame.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the guest's programs
	Kernel   string `json:"kernel"`  // uname -r
	Arch     string `json:"arch"`    // GOARCH
	// Secret is the boot's, of a guest that has been saved and goes on.
	Secret []byte `json:"secret,omitempty"`
}

// Welcome is the host's answer, and all of the guest's configuration.
type Welcome struct {
	Protocol int       `json:"protocol"`
	Error    string    `json:"error,omitempty"` // set: the guest prints it and powers off
	Secret   []byte    `json:"secret"`          // SecretSize bytes
	Time     time.Time `json:"time"`
	Hostname string    `json:"hostname"`
	Network  Network   `json:"network"`
	SSH      SSH       `json:"ssh"`
	Machine  Machine   `json:"machine"`
	Proxy    Proxy     `json:"proxy"`
	CABundle string    `json:"caBundle,omitempty"` // PEM, added to the guest's own roots
	Shares   []Share   `json:"shares,omitempty"`
}

// Share is a folder of the host that the guest mounts by its tag. A folder with
// several names on the host, by symbolic links, comes once for each with the same
// tag.
type Share struct {
	Tag      string        `json:"tag"`
	Path     string        `json:"path"` // on the host, absolute and clean
	ReadOnly bool          `json:"readOnly,omitempty"`
	Protocol ShareProtocol `json:"protocol,omitempty"`
}

// ShareProtocol is how the guest gets at a folder.
type ShareProtocol string

// The protocols.
const (
	ShareVirtiofs ShareProtocol = ""
	Share9P       ShareProtocol = "9p" // 2000.L, over a stream to PortFolderHost
)

// Max9P is the largest 9P message, in bytes.
const Max9P = 128 << 10

// Network is the guest's address on the host's user-mode network.
type Network struct {
	Address string   `json:"address"` // with prefix length: "192.168.127.2/24"
	Gateway string   `json:"gateway"`
	MTU     int      `json:"mtu"`
	DNS     []string `json:"dns"`  // addresses the guest asks
	Host    string   `json:"host"` // the address that stands for the host's loopback (host.docker.internal)
}

// SSH holds the keys of the guest's SSH server.
type SSH struct {
	HostKey       string `json:"hostKey"`       // private, OpenSSH PEM
	AuthorizedKey string `json:"authorizedKey"` // one authorized_keys line
}

// Machine is what the engine reports about the machine it runs in.
type Machine struct {
	Name         string `json:"name"`
	Version      string `json:"version"` // of the host program
	Driver       string `json:"driver"`
	Acceleration string `json:"acceleration"`
	Hypervisor   string `json:"hypervisor"` // "QEMU 7.2.22"
	// DockerSocket is where the host's clients find the engine. A container that
	// is given this socket gets the engine's own.
	DockerSocket string `json:"dockerSocket,omitempty"`
}

// Proxy holds the host's proxy settings, in the form of the usual variables.
type Proxy struct {
	HTTP  string `json:"http,omitempty"`
	HTTPS string `json:"https,omitempty"`
	No    string `json:"no,omitempty"`
}

// Note is one frame from PID 1 after the Welcome. Exactly one field is set.
type Note struct {
	Phase  *Phase  `json:"phase,omitempty"`
	Engine *Engine `json:"engine,omitempty"`
	Reply  *Reply  `json:"reply,omitempty"`
}

// Phase reports a phase of the boot; it is sent when the phase begins (Took is
// zero and Done is false) and again when it has ended.
type Phase struct {
	Name  string        `json:"name"` // "modules", "data disk", "network", "engine", ...
	Done  bool          `json:"done"`
	Since time.Duration `json:"since"` // begin, since the kernel started
	Took  time.Duration `json:"took"`
	Error string        `json:"error,omitempty"`
}

// Engine reports a change in the engine's process.
type Engine struct {
	Running  bool   `json:"running"`
	Restarts int    `json:"restarts"`         // since boot
	Reason   string `json:"reason,omitempty"` // why it last ended
}

// Order is one frame from the host after the Welcome.
type Order struct {
	ID   uint64    `json:"id"` // echoed in the Reply
	Op   Op        `json:"op"`
	Time time.Time `json:"time,omitzero"` // for OpTime: now
}

// Op is what an Order asks for.
type Op string

// The orders.
const (
	OpPowerOff Op = "poweroff" // stop the engine and containers, unmount, switch off; the reply comes first
	OpReboot   Op = "reboot"   // the same, then restart
	OpTime     Op = "time"     // set the clock
	OpSave     Op = "save"     // get ready to be saved; an error: it cannot be now
	OpStay     Op = "stay"     // it was not saved
)

// Reply answers the Order with the same ID.
type Reply struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"`
}

// DialRequest asks the host to connect to one of its loopback addresses, on
// PortLoopbackHost, after the secret.
type DialRequest struct {
	Network string `json:"network"` // "tcp"
	Address string `json:"address"` // "127.0.0.1:5000", "[::1]:5000" or "localhost:5000"
}

// DialReply is the host's answer. Raw bytes follow when Error is empty.
type DialReply struct {
	Error string `json:"error,omitempty"`
}

// FolderRequest says which folder the 9P that follows is about, on PortFolderHost,
// after the secret. The host hangs up when it does not lend such a folder.
type FolderRequest struct {
	Tag string `json:"tag"` // of a Share
}

// PublishRequest asks the host to listen for a container, on PortPublishHost,
// after the secret.
type PublishRequest struct {
	ID      uint64 `json:"id"`      // chosen by the guest, comes back in each PortalRequest
	Network string `json:"network"` // "tcp" or "udp"; "tcp6" or "udp6" where "[::]" is no IPv4 address too
	Address string `json:"address"` // on the host: "0.0.0.0:8080", "[::1]:0"
	PublishTarget
}

// PublishTarget says where a published TCP port leads to, by IPv4. The guest sends
// another when that has changed.
type PublishTarget struct {
	Target string `json:"target,omitempty"` // "172.17.0.2:80"; empty where portal streams lead only
}

// PublishReply is the host's answer.
type PublishReply struct {
	Address string `json:"address"` // with the port that was chosen
	Error   string `json:"error,omitempty"`
}

// PortalRequest opens a portal stream.
type PortalRequest struct {
	ID   uint64 `json:"id"`   // of the PublishRequest, or 0
	Peer string `json:"peer"` // the client's address on the host, for messages
}

// WriteDatagram sends p, at most MaxDatagram bytes, on a flow's stream, in one
// Write.
func WriteDatagram(w io.Writer, p []byte) error {
	if len(p) > MaxDatagram {
		return ErrFrameTooLarge
	}
	buf := make([]byte, 2, 2+len(p))
	binary.BigEndian.PutUint16(buf, uint16(len(p)))
	_, err := w.Write(append(buf, p...))
	return err
}

// ReadDatagram reads the next datagram of a flow into buf, MaxDatagram bytes
// long, and returns its length.
func ReadDatagram(r io.Reader, buf []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	return io.ReadFull(r, buf[:binary.BigEndian.Uint16(head[:])])
}

// WriteFrame sends v as one frame, in one Write.
func WriteFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("wire: encode %T: %w", v, err)
	}
	if len(body) > MaxFrame {
		return ErrFrameTooLarge
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

// ReadFrame reads one frame into v. It reads no byte beyond the frame. It
// returns io.EOF only when the stream ended before the frame's first byte, and
// allocates no more than has arrived.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxFrame {
		return ErrFrameTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return err
	}
	if len(body) != int(size) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("wire: decode %T: %w", v, err)
	}
	return nil
}
