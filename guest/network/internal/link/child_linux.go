package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// AddDummy makes an interface that leads nowhere, down.
func (c *Conn) AddDummy(name string) error {
	return c.add(&netlink.Dummy{LinkAttrs: ours(name)})
}

// AddVLAN makes the interface of a VLAN of another interface, down.
func (c *Conn) AddVLAN(name string, parent, id int) error {
	attrs := ours(name)
	attrs.ParentIndex = parent
	return c.add(&netlink.Vlan{LinkAttrs: attrs, VlanId: id})
}

// ChildSpec describes an interface of a container's that shares one of the
// machine's.
type ChildSpec struct {
	Kind   string // "macvlan" or "ipvlan"
	Mode   string // as docker names them
	Flag   string // of ipvlan: "" is bridge
	Parent int    // index
	Via    string // a name that is free here and in NS
	Name   string // in NS
	NS     *NS
	MAC    net.HardwareAddr // of macvlan
	MTU    int              // 0: the parent's
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
	"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

var ipvlanModes = map[string]netlink.IPVlanMode{
	"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S,
}

var ipvlanFlags = map[string]netlink.IPVlanFlag{
	"": netlink.IPVLAN_FLAG_BRIDGE, "bridge": netlink.IPVLAN_FLAG_BRIDGE,
	"private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA,
}

// AddChild makes the interface in its namespace, down. A failed one leaves none.
func (c *Conn) AddChild(s ChildSpec) error {
	// The kernel makes it there at once, but wants the name to be free here, too.
	attrs := ours(s.Via)
	attrs.ParentIndex, attrs.HardwareAddr, attrs.MTU = s.Parent, s.MAC, s.MTU
	attrs.Namespace = netlink.NsFd(s.NS.FD())
	var l netlink.Link = &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[s.Mode]}
	if s.Kind == "ipvlan" {
		l = &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[s.Mode], Flag: ipvlanFlags[s.Flag]}
	}
	if err := c.add(l); err != nil {
		return err
	}
	there, err := s.NS.Dial()
	if err != nil {
		return err // the namespace is no more, or soon
	}
	defer there.Close()
	made, err := there.ByName(s.Via)
	if err == nil {
		err = there.h.LinkSetName(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: made.Index}}, s.Name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot name the interface %s: %w", s.Name, err), there.Delete(s.Via))
	}
	return nil
}

func ours(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group = name, Group
	return attrs
}

func (c *Conn) add(l netlink.Link) error {
	if err := c.h.LinkAdd(l); err != nil {
		return fmt.Errorf("cannot make the %s interface %s: %w", l.Type(), l.Attrs().Name, err)
	}
	return nil
}
