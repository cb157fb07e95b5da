package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Group marks the interfaces that are ours ("bert").
const Group = 0x62657274

// Conn is a netlink socket in one network namespace. It is safe for concurrent
// use; requests take turns.
type Conn struct {
	h *netlink.Handle
	// raw carries the requests that netlink's Handle has no call for.
	raw map[int]*nl.SocketHandle
}

// Dial opens a socket in the calling thread's namespace.
func Dial() (*Conn, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("cannot open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("cannot open netlink: %w", err)
	}
	return &Conn{h, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

// Dial opens a socket in the namespace.
func (n *NS) Dial() (c *Conn, err error) {
	err = n.Do(func() error {
		c, err = Dial()
		return err
	})
	return c, err
}

// Close frees the socket.
func (c *Conn) Close() {
	c.h.Close()
	c.raw[unix.NETLINK_ROUTE].Close()
}

// Info is an interface.
type Info struct {
	Name   string
	Index  int
	Master int
	Group  uint32
	Type   string
	MTU    int
	MAC    net.HardwareAddr
	Stats  *netlink.LinkStatistics
}

// ByName finds an interface.
func (c *Conn) ByName(name string) (Info, error) {
	l, err := c.h.LinkByName(name)
	if err != nil {
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			err = &net.OpError{Op: "find", Net: "interface " + name, Err: syscall.ENODEV}
		}
		return Info{}, err
	}
	return info(l), nil
}

// List returns all interfaces of the namespace.
func (c *Conn) List() ([]Info, error) {
	links, err := c.h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	out := make([]Info, 0, len(links))
	for _, l := range links {
		out = append(out, info(l))
	}
	return out, nil
}

func info(l netlink.Link) Info {
	a := l.Attrs()
	return Info{Name: a.Name, Index: a.Index, Master: a.MasterIndex, Group: a.Group, Type: l.Type(), MTU: a.MTU, MAC: a.HardwareAddr, Stats: a.Statistics}
}

// BridgeSpec describes a bridge to make.
type BridgeSpec struct {
	Name string
	MTU  int
	MAC  net.HardwareAddr
}

// AddBridge makes a bridge, down.
func (c *Conn) AddBridge(s BridgeSpec) error {
	req := newLink(unix.IFF_MULTICAST, s.Name, s.MTU, s.MAC)
	li := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	li.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	req.AddData(li)
	return c.execute(req, "make the bridge "+s.Name)
}

// VethSpec describes a pair of interfaces: Name here, PeerName in a container.
type VethSpec struct {
	Name     string
	Bridge   int // index of the bridge that Name joins
	PeerName string
	PeerMAC  net.HardwareAddr
	PeerNS   *NS
	MTU      int
}

// AddVeth makes both ends in one request: this end up and in its bridge, the
// other one in its namespace, down.
func (c *Conn) AddVeth(s VethSpec) error {
	req := newLink(unix.IFF_UP, s.Name, s.MTU, nil)
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(s.Bridge))))
	li := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	li.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := li.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	peer.AddChild(nl.NewIfInfomsg(unix.AF_UNSPEC)) // the kernel cannot switch it on yet
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(s.PeerName))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(s.MTU)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, s.PeerMAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(s.PeerNS.FD())))
	req.AddData(li)
	return c.execute(req, "make the interface "+s.Name)
}

func newLink(flags uint32, name string, mtu int, mac net.HardwareAddr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags = flags & unix.IFF_UP
	msg.Change = flags & unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Group)))
	if mac != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	return req
}

// execute sends one request on the handle's socket.
func (c *Conn) execute(req *nl.NetlinkRequest, what string) error {
	req.Sockets = c.raw
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

// Delete removes an interface, with its other end. It is no error if there is
// none.
func (c *Conn) Delete(name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err := c.execute(req, "remove the interface "+name); err != nil && !IsNotExist(err) {
		return err
	}
	return nil
}

// SetUp switches an interface on.
func (c *Conn) SetUp(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	return c.execute(req, "switch an interface on")
}

// SyncCarrier makes interfaces work, in this order, that have got a carrier: that
// of a veth's both ends comes with the second one's SetUp, a bridge's with its
// first port. The kernel leaves the rest to a worker: to open the queue and to let
// the bridge's port forward, and until that ran, some milliseconds later, frames
// are lost without a word. For whoever asks for the interface it is done at once
// (Linux 6.8; on an older one this does nothing).
func (c *Conn) SyncCarrier(indexes ...int) error {
	for _, index := range indexes {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(index)
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		if err := c.execute(req, "ask for an interface's carrier"); err != nil {
			return err
		}
	}
	return nil
}

// skipStats is the kernel's RTEXT_FILTER_SKIP_STATS, which x/sys/unix lacks.
const skipStats = 1 << 3

// Isolate keeps a bridge's port from talking to the bridge's other isolated ones.
func (c *Conn) Isolate(index int) error {
	return c.h.LinkSetIsolated(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, true)
}

// Hairpin lets a bridge's port get its own frames back.
func (c *Conn) Hairpin(index int) error {
	return c.h.LinkSetHairpin(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, true)
}

// AddAddr gives an interface an address. That it has it already is no error.
func (c *Conn) AddAddr(index int, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // our own pool saw to it
	}
	err := c.h.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, a)
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("cannot set the address %s: %w", p, err)
	}
	return nil
}

// SetDefault makes the default route of one family lead to gw or, where that is the
// zero value, to the interface itself. With replace it takes the place of the one
// there is; without, that there is one, which somebody else made, is an error.
func (c *Conn) SetDefault(index int, v6 bool, gw netip.Addr, replace bool) error {
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(defaultOf(v6))}
	if gw.IsValid() {
		r.Gw = gw.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	set := c.h.RouteAdd
	if replace {
		set = c.h.RouteReplace
	}
	if err := set(r); err != nil {
		return fmt.Errorf("failed to set gateway: %w", err)
	}
	return nil
}

// DeleteDefault removes the default route of one family. It is no error if
// there is none.
func (c *Conn) DeleteDefault(v6 bool) error {
	if err := c.h.RouteDel(&netlink.Route{Dst: ipNet(defaultOf(v6))}); err != nil && !IsNotExist(err) {
		return fmt.Errorf("cannot remove the default route: %w", err)
	}
	return nil
}

// Addrs returns the addresses of all interfaces, with their prefixes.
func (c *Conn) Addrs() (map[int][]netip.Prefix, error) {
	addrs, err := c.h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	out := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			out[a.LinkIndex] = append(out[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out, nil
}

// ForgetUDP removes the kernel's memory of UDP flows that were translated to an
// address, which would otherwise outlive a published port.
func (c *Conn) ForgetUDP(to netip.Addr) error {
	f := &netlink.ConntrackFilter{}
	if err := f.AddProtocol(unix.IPPROTO_UDP); err != nil {
		return err
	}
	if err := f.AddIP(netlink.ConntrackReplySrcIP, to.AsSlice()); err != nil {
		return err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
	return err
}

// defaultOf is the destination of a family's default route.
func defaultOf(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// MAC is the hardware address that docker gives to an IPv4 address: 02:42 and
// the four bytes. For IPv6 it is made of the last four.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(mac[2:], binary.BigEndian.Uint32(b[len(b)-4:]))
	return mac
}
