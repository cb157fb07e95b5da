package network

import (
	"crypto/rand"
	"errors"
	"net"

	"github.com/berthvm/berth/guest/network/internal/link"
)

// ensureParent makes the interface that a macvlan or ipvlan network's containers
// sit on, if need be, and returns its index. One of the machine's is taken as it
// is; a VLAN of one, and what stands in for a parent that nobody named, are ours.
func (m *Manager) ensureParent(def Network) (index int, err error) {
	m.parents.Lock()
	defer m.parents.Unlock()
	l, err := m.root.ByName(def.Parent)
	if err == nil {
		return l.Index, nil
	}
	if !link.IsNotExist(err) {
		return 0, err
	}
	if def.Options[OptionParent] == "" {
		err = m.root.AddDummy(def.Parent)
	} else {
		err = m.addVLAN(def.Parent)
	}
	if err != nil {
		return 0, err
	}
	if l, err = m.root.ByName(def.Parent); err == nil {
		err = m.root.SetUp(l.Index)
	}
	if err != nil {
		return 0, errors.Join(err, m.root.Delete(def.Parent))
	}
	return l.Index, nil
}

func (m *Manager) addVLAN(name string) error {
	parent, id, err := parseVLAN(name)
	if err != nil {
		return err
	}
	l, err := m.root.ByName(parent)
	if link.IsNotExist(err) {
		return invalid("-o parent interface was not found on the host: %s", parent)
	}
	if err != nil {
		return err
	}
	return m.root.AddVLAN(name, l.Index, id)
}

// removeParent removes a network's parent if it is ours and no other network has
// it. The network is forgotten already.
func (m *Manager) removeParent(def Network) error {
	m.parents.Lock()
	defer m.parents.Unlock()
	m.mu.RLock()
	shared := false
	for _, n := range m.networks {
		shared = shared || n.def.Parent == def.Parent
	}
	m.mu.RUnlock()
	l, err := m.root.ByName(def.Parent)
	if shared || link.IsNotExist(err) {
		return nil
	}
	if err != nil || l.Group != link.Group {
		return err
	}
	return m.root.Delete(def.Parent)
}

// connectChild makes an endpoint's interface, which is in the container from the
// beginning and has no other end. A failed one leaves none.
func (m *Manager) connectChild(def Network, ep Endpoint, ns *link.NS) error {
	parent, err := m.ensureParent(def)
	if err != nil {
		return err
	}
	spec := link.ChildSpec{Kind: def.Driver, Mode: def.mode(), Flag: def.Options[OptionIPvlanFlag], Parent: parent,
		Via: "via" + ep.ID[:12], Name: ep.Interface, NS: ns}
	if _, ok := def.Options[OptionMTU]; ok {
		spec.MTU = def.MTU
	}
	if ep.MAC != "" {
		if spec.MAC, err = net.ParseMAC(ep.MAC); err != nil {
			return err
		}
	}
	if err := m.root.AddChild(spec); err != nil {
		return err
	}
	if ep.IPv6.IsValid() {
		err = ns.Do(func() error { return setIPv6(ep.Interface, true) })
	}
	if err == nil {
		err = inside(ns, ep)
	}
	if err != nil {
		return errors.Join(err, deleteInside(ns, ep.Interface))
	}
	return nil
}

// dropInterface removes an endpoint's interface. It is no error if there is none.
func (m *Manager) dropInterface(ep Endpoint) error {
	switch {
	case ep.Device != "":
		return m.root.Delete(ep.Device)
	case ep.Interface == "":
		return nil
	}
	ns, err := link.OpenNS(ep.NetNS)
	if link.IsNotExist(err) {
		return nil // the container has ended, and its interface with it
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return deleteInside(ns, ep.Interface)
}

func deleteInside(ns *link.NS, name string) error {
	c, err := ns.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Delete(name)
}

// childInfo finds the interface of an endpoint that has no other end.
func childInfo(ep Endpoint) (link.Info, error) {
	ns, err := link.OpenNS(ep.NetNS)
	if err != nil {
		return link.Info{}, err
	}
	defer ns.Close()
	c, err := ns.Dial()
	if err != nil {
		return link.Info{}, err
	}
	defer c.Close()
	return c.ByName(ep.Interface)
}

// randomMAC is for an interface that has no address to make one of.
func randomMAC() string {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	rand.Read(mac[2:])
	return mac.String()
}
