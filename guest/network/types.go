package network

import (
	"log/slog"
	"net/netip"
	"time"
)

// The names of the networks that always exist.
const (
	Bridge = "bridge" // docker0
	Host   = "host"   // the machine's own namespace
	None   = "none"   // a namespace with a loopback only
)

// The drivers a network can have.
const (
	DriverBridge  = "bridge"
	DriverHost    = "host"
	DriverNull    = "null"
	DriverMacvlan = "macvlan"
	DriverIPvlan  = "ipvlan"
)

// Driver options that Create understands, under docker's names.
const (
	OptionBridgeName  = "com.docker.network.bridge.name"
	OptionICC         = "com.docker.network.bridge.enable_icc"
	OptionMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	OptionMode4       = "com.docker.network.bridge.gateway_mode_ipv4" // nat, nat-unprotected, routed or isolated
	OptionMode6       = "com.docker.network.bridge.gateway_mode_ipv6"
	OptionTrusted     = "com.docker.network.bridge.trusted_host_interfaces" // "eth0:eth1": from these, containers' own addresses are reached
	OptionInhibit4    = "com.docker.network.bridge.inhibit_ipv4"            // the bridge itself has no IPv4 address
	OptionHostBinding = "com.docker.network.bridge.host_binding_ipv4"
	OptionMTU         = "com.docker.network.driver.mtu"
	OptionIPv4        = "com.docker.network.enable_ipv4"
	OptionIPv6        = "com.docker.network.enable_ipv6"
	OptionIfPrefix    = "com.docker.network.container_iface_prefix"
)

// Options configures a Manager.
type Options struct {
	Log      *slog.Logger
	StateDir string       // durable: definitions of user-defined networks
	RunDir   string       // on a tmpfs: endpoints. Default /run/berth/network
	NetNSDir string       // on a tmpfs: pinned namespaces. Default /run/berth/netns
	Uplink   string       // the machine's own interface. Default eth0
	DNS      []netip.Addr // the servers that answer what is not a container's name
	MTU      int          // of new bridges, bytes. Default 1500
	Host     netip.Addr   // from which the machine's host reaches containers through Uplink; none: it does not

	// DefaultSubnet is docker0's; its gateway is the address in it, which is the
	// first by default: 172.17.0.1/16.
	DefaultSubnet netip.Prefix
}

// Subnet is one range of addresses of a network.
type Subnet struct {
	Subnet  netip.Prefix          `json:"subnet"`
	Range   netip.Prefix          `json:"range,omitzero"` // where addresses are handed out; all of Subnet by default
	Gateway netip.Addr            `json:"gateway,omitzero"`
	Aux     map[string]netip.Addr `json:"aux,omitempty"` // addresses never handed out
}

// Config is what Create makes a network of.
type Config struct {
	Name       string
	Driver     string // DriverBridge by default
	Internal   bool   // no way out of the network
	Attachable bool   // kept for inspect only
	ConfigOnly bool   // nobody is ever on it: it is there for ConfigFrom
	ConfigFrom string // the network with ConfigOnly whose settings this one has
	NoIPv4     bool   // an IPv6-only network
	IPv6       bool
	IPAMDriver string   // "default" or ""
	Subnets    []Subnet // one is chosen where a family has none
	IPAMOpts   map[string]string
	Options    map[string]string // the driver's
	Labels     map[string]string
}

// Network describes a network. It is a value: its maps and slices are copies.
type Network struct {
	ID         string            `json:"id"` // 64 hex digits
	Name       string            `json:"name"`
	Driver     string            `json:"driver"`
	Created    time.Time         `json:"created"`
	Internal   bool              `json:"internal,omitempty"`
	Attachable bool              `json:"attachable,omitempty"`
	ConfigOnly bool              `json:"configOnly,omitempty"`
	ConfigFrom string            `json:"configFrom,omitempty"`
	NoIPv4     bool              `json:"noIPv4,omitempty"`
	IPv6       bool              `json:"ipv6,omitempty"`
	Subnets    []Subnet          `json:"subnets,omitempty"`
	IPAMOpts   map[string]string `json:"ipamOptions,omitempty"`
	Options    map[string]string `json:"options,omitempty"` // as they were given
	Labels     map[string]string `json:"labels,omitempty"`

	Device string `json:"device,omitempty"` // the bridge's interface: docker0, br-0123456789ab
	Parent string `json:"parent,omitempty"` // what containers of macvlan and ipvlan sit on: eth0, dm-0123456789ab
	MTU    int    `json:"mtu,omitempty"`
}

// Scope is docker's word for how far a network reaches.
func (Network) Scope() string { return "local" }

// Predefined reports whether the network always exists and cannot be removed.
func (n Network) Predefined() bool { return n.Name == Bridge || n.Name == Host || n.Name == None }

// UserDefined reports whether containers find each other by name on n.
func (n Network) UserDefined() bool { return !n.Predefined() }

// AttachRequest asks for an endpoint.
type AttachRequest struct {
	ContainerID   string
	ContainerName string // without the slash; for inspect of the network
	Network       string // name, ID, or a prefix of the ID that fits one only

	// NetNS is the path of the container's namespace: NewNS's, or that of a
	// container whose namespace this one shares. It is ignored on host.
	NetNS string

	IPv4 netip.Addr // optional, user-defined networks only, as docker has it
	IPv6 netip.Addr // optional
	MAC  string     // optional; made from the address by default
	// LinkLocal are further addresses that the interface gets; nobody checks them.
	LinkLocal []netip.Addr

	// Names are what other containers on the network call this one. Docker's are
	// the name, the first 12 digits of the ID, the aliases and the host name.
	// The first answers reverse look-ups.
	Names []string
	// Links are names that only this container uses for others: alias → name.
	Links map[string]string

	// DNS replaces Options.DNS for the names that 127.0.0.11 does not know.
	DNS []netip.Addr

	GatewayPriority int // the highest wins the default route
	DriverOpts      map[string]string
	NoIPv6          bool // the container has switched it off: no address, and no name for one
}

// Endpoint is a container's place on a network. It is a value.
type Endpoint struct {
	ID            string            `json:"id"` // 64 hex digits
	NetworkID     string            `json:"networkID"`
	NetworkName   string            `json:"networkName"`
	ContainerID   string            `json:"containerID"`
	ContainerName string            `json:"containerName"`
	NetNS         string            `json:"netns,omitempty"`
	Interface     string            `json:"interface,omitempty"` // in the container: eth0
	Device        string            `json:"device,omitempty"`    // in the machine: veth0123456; none of macvlan and ipvlan
	IPv4          netip.Prefix      `json:"ipv4,omitzero"`
	IPv6          netip.Prefix      `json:"ipv6,omitzero"`
	Direct        bool              `json:"direct,omitempty"`  // the default route leads to the interface
	Gateway4      netip.Addr        `json:"gateway4,omitzero"` // none on internal networks
	Gateway6      netip.Addr        `json:"gateway6,omitzero"`
	MAC           string            `json:"mac,omitempty"`
	Names         []string          `json:"names,omitempty"`
	Links         map[string]string `json:"links,omitempty"`
	Priority      int               `json:"priority,omitempty"`
	DriverOpts    map[string]string `json:"driverOpts,omitempty"`
}

// Port publishes a port of a container's inside the machine. The listener on the
// host is not this package's business: whoever made it knows HostPort. A HostPort of
// 0 only opens the port at the container's own address, where the gateway mode of one
// of its networks is routed.
type Port struct {
	Proto         string     `json:"proto"`           // "tcp", "udp" or "sctp"
	HostIP        netip.Addr `json:"hostIP,omitzero"` // none: every address of the machine's
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// Ways says how the published ports of a container are reached, by family: at an
// address of the machine's (and so the host's), or at the container's own.
type Ways struct {
	Translated4, Translated6 bool
	Routed4, Routed6         bool
}

// Usage counts the addresses of one subnet.
type Usage struct {
	InUse     uint64 // reserved ones included
	Available uint64 // that can still be chosen; at most math.MaxUint64
}

// Stats counts what went through one interface of a container's, seen from the
// container.
type Stats struct {
	Interface                               string // eth0
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
