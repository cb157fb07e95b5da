package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/ipam"
	"github.com/berthvm/berth/guest/network/internal/link"
)

// network is a network and what the Manager keeps about it. def does not change.
type network struct {
	def   Network
	pools []*ipam.Pool // one for each of def.Subnets; guarded by Manager.mu
	using int          // endpoints that exist or are being made; guarded by Manager.mu
	leave int          // endpoints whose addresses come back when the kernel is done with them; guarded by Manager.mu
	gone  bool         // guarded by Manager.mu

	dev   sync.Mutex
	index int // of the bridge's interface; 0 while there is none. Guarded by dev
}

// addNetwork takes a network into memory. Called with mu held, or from Open.
func (m *Manager) addNetwork(def Network) error {
	n := &network{def: def}
	if def.ConfigOnly {
		m.networks[def.ID] = n
		return nil
	}
	for _, s := range def.Subnets {
		reserved := []netip.Addr{s.Gateway}
		for _, a := range s.Aux {
			reserved = append(reserved, a)
		}
		p, err := m.newPool(def, s, reserved)
		if err != nil {
			n.closePools()
			return err
		}
		n.pools = append(n.pools, p)
	}
	m.networks[def.ID] = n
	return nil
}

// newPool makes the pool of a subnet. Networks on the machine's interfaces may have
// one subnet in common, and then share its addresses.
func (m *Manager) newPool(def Network, s Subnet, reserved []netip.Addr) (*ipam.Pool, error) {
	if def.onParent() {
		for _, other := range m.networks {
			for i, o := range other.def.Subnets {
				if other.def.onParent() && o.Subnet == s.Subnet {
					return other.pools[i].Share(s.Range, reserved...)
				}
			}
		}
	}
	return ipam.NewPool(s.Subnet, s.Range, reserved...)
}

func (n *network) closePools() {
	for _, p := range n.pools {
		p.Close()
	}
}

// pool returns the pool of addresses of a family. Docker, too, uses the first
// where a network has several.
func (n *network) pool(v6 bool) *ipam.Pool {
	for i, s := range n.def.Subnets {
		if s.Subnet.Addr().Is6() == v6 {
			return n.pools[i]
		}
	}
	return nil
}

// poolOf returns the pool whose subnet holds a.
func (n *network) poolOf(a netip.Addr) *ipam.Pool {
	for i, s := range n.def.Subnets {
		if s.Subnet.Contains(a) {
			return n.pools[i]
		}
	}
	return nil
}

// gateway returns the gateway of the subnet that holds a.
func (n *network) gateway(a netip.Addr) netip.Addr {
	for _, s := range n.def.Subnets {
		if s.Subnet.Contains(a) {
			return s.Gateway
		}
	}
	return netip.Addr{}
}

// Create makes a network. An error is errdefs' AlreadyExists (the name),
// InvalidArgument (also when no subnet is free), PermissionDenied (a predefined
// name, an overlap, a parent that is taken) or NotFound (the driver).
func (m *Manager) Create(ctx context.Context, cfg Config) (Network, error) {
	def, err := m.create(cfg)
	if err == nil && def.onParent() {
		// The user hears now of a parent that cannot be had.
		if _, err = m.ensureParent(def); err != nil {
			err = errors.Join(err, m.Remove(ctx, def.ID))
		}
	}
	if err != nil {
		return Network{}, err
	}
	return def.clone(), nil
}

// create makes a network in memory and in the state.
func (m *Manager) create(cfg Config) (Network, error) {
	uplink, err := m.uplinkPrefixes()
	if err != nil {
		return Network{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Network{}, errClosed
	}
	for _, n := range m.networks {
		if n.def.Name == cfg.Name && !n.def.Predefined() {
			return Network{}, errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("network with name %s already exists", cfg.Name))
		}
	}
	def, err := m.define(cfg, uplink)
	if err != nil {
		return Network{}, err
	}
	for _, n := range m.networks {
		if n.def.Device == def.Device && def.Device != "" {
			return Network{}, forbidden("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name",
				def.ID, def.Device, n.def.ID, n.def.Device)
		}
		if err := def.parentConflict(n.def); err != nil {
			return Network{}, err
		}
	}
	switch err := m.addNetwork(def); {
	case errors.Is(err, ipam.ErrTaken):
		return Network{}, forbidden("failed to allocate gateway: Address already in use")
	case err != nil:
		return Network{}, invalid("%v", err)
	}
	if err := m.save(); err != nil {
		m.drop(m.networks[def.ID])
		return Network{}, err
	}
	return def, nil
}

// define turns a wish into a network. Called with mu held.
func (m *Manager) define(cfg Config, uplink []netip.Prefix) (Network, error) {
	if cfg.ConfigOnly {
		return defineConfigOnly(cfg)
	}
	if cfg.ConfigFrom != "" {
		var source *network
		for _, n := range m.networks {
			if n.def.Name == cfg.ConfigFrom && n.def.ConfigOnly {
				source = n
			}
		}
		if source == nil {
			return Network{}, notFound("configuration network %q does not exist", cfg.ConfigFrom)
		}
		var err error
		if cfg, err = cfg.from(source.def); err != nil {
			return Network{}, err
		}
	}
	if cfg.IPv6 && !m.site.IsValid() {
		m.site = newSite()
	}
	return define(cfg, m.opts.MTU, m.taken(cfg.Driver), uplink, m.site)
}

// taken are the subnets that a new network must not overlap: those of the bridges;
// or, where containers sit on the machine's interfaces and have addresses of the
// world outside, those of their like.
func (m *Manager) taken(driver string) []netip.Prefix {
	onParent := Network{Driver: driver}.onParent()
	var taken []netip.Prefix
	for _, n := range m.networks {
		if n.def.onParent() == onParent && !n.def.ConfigOnly {
			for _, s := range n.def.Subnets {
				taken = append(taken, s.Subnet)
			}
		}
	}
	return taken
}

// drop takes a network out of memory. Called with mu held.
func (m *Manager) drop(n *network) {
	delete(m.networks, n.def.ID)
	n.gone = true
	n.closePools()
}

// save writes the definitions. Called with mu held: definitions change rarely.
func (m *Manager) save() error {
	st := stateFile{Version: stateVersion, Site: m.site, Networks: []Network{}}
	for _, n := range m.networks {
		if !n.def.Predefined() {
			st.Networks = append(st.Networks, n.def)
		}
	}
	slices.SortFunc(st.Networks, func(a, b Network) int { return a.Created.Compare(b.Created) })
	if err := writeWhole(m.opts.statePath(), st, true); err != nil {
		return fmt.Errorf("cannot save the networks: %w", err)
	}
	return nil
}

// Remove removes a network that no endpoint uses.
func (m *Manager) Remove(ctx context.Context, nameOrID string) error {
	n, err := m.find(nameOrID)
	if err != nil {
		return err
	}
	// With dev held nobody can make the bridge between the check and its end.
	n.dev.Lock()
	defer n.dev.Unlock()
	if err := m.forget(n); err != nil {
		return err
	}
	if n.def.onParent() {
		return m.removeParent(n.def)
	}
	if n.index == 0 {
		return nil
	}
	n.index = 0
	fw, err := m.firewall()
	if err != nil {
		return err
	}
	if err := m.root.Delete(n.def.Device); err != nil {
		return err
	}
	return fw.RemoveBridge(n.def.Device)
}

// forget takes a network out of memory and of the state, if it may go.
func (m *Manager) forget(n *network) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case n.gone:
		return notFound("network %s not found", n.def.Name)
	case n.def.Predefined():
		return forbidden("%s is a pre-defined network and cannot be removed", n.def.Name)
	case n.def.ConfigOnly && m.configures(n.def.Name):
		return forbidden("error while removing network: configuration network %q is in use", n.def.Name)
	case n.using > 0:
		return forbidden("error while removing network: network %s has active endpoints (%s)", n.def.Name, m.users(n))
	}
	delete(m.networks, n.def.ID)
	if err := m.save(); err != nil {
		m.networks[n.def.ID] = n
		return err
	}
	m.drop(n)
	return nil
}

// configures reports whether a network has its settings from the named one. Called
// with mu held.
func (m *Manager) configures(name string) bool {
	for _, n := range m.networks {
		if n.def.ConfigFrom == name {
			return true
		}
	}
	return false
}

// users names the containers on a network. Called with mu held.
func (m *Manager) users(n *network) string {
	var out []string
	for _, sb := range m.sandboxes {
		for _, ep := range sb.endpoints {
			if ep.NetworkID == n.def.ID {
				out = append(out, fmt.Sprintf("name:%q id:%q", ep.ContainerName, ep.ID[:12]))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// Get finds a network by name, ID, or a prefix of an ID that fits one only.
func (m *Manager) Get(nameOrID string) (Network, error) {
	n, err := m.find(nameOrID)
	if err != nil {
		return Network{}, err
	}
	return n.def.clone(), nil
}

func (m *Manager) find(nameOrID string) (*network, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n, ok := m.networks[nameOrID]; ok {
		return n, nil
	}
	var byPrefix []*network
	for _, n := range m.networks {
		if n.def.Name == nameOrID {
			return n, nil
		}
		if nameOrID != "" && strings.HasPrefix(n.def.ID, nameOrID) {
			byPrefix = append(byPrefix, n)
		}
	}
	switch len(byPrefix) {
	case 0:
		return nil, notFound("network %s not found", nameOrID)
	case 1:
		return byPrefix[0], nil
	}
	return nil, invalid("network %s is ambiguous (%d matches found based on ID prefix)", nameOrID, len(byPrefix))
}

// Usage counts the addresses of a network's subnets. What was made ahead of time
// for the next container does not count, nor what ended containers had: it waits
// for that to come back.
func (m *Manager) Usage(nameOrID string) (map[netip.Prefix]Usage, error) {
	n, err := m.find(nameOrID)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n.leave > 0 {
		m.left.Wait()
	}
	out := map[netip.Prefix]Usage{}
	for i, p := range n.pools {
		inUse, available := p.Usage()
		for _, sp := range m.spares() {
			if sp.ep.NetworkID == n.def.ID {
				inUse--
				available++
			}
		}
		out[n.def.Subnets[i].Subnet] = Usage{inUse, available}
	}
	return out, nil
}

// List returns all networks, sorted by name.
func (m *Manager) List() []Network {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]Network, 0, len(m.networks))
	for _, n := range m.networks {
		out = append(out, n.def.clone())
	}
	slices.SortFunc(out, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// rules is what the firewall must know about a network.
func (n *network) rules() firewall.Bridge {
	b := firewall.Bridge{Name: n.def.Device, Internal: n.def.Internal, ICC: n.def.flag(OptionICC),
		Direct4: direct(n.def.gatewayMode(false)), Direct6: direct(n.def.gatewayMode(true)), Trusted: n.def.trusted()}
	for _, s := range n.def.Subnets {
		b.Subnets = append(b.Subnets, s.Subnet)
		if n.def.flag(OptionMasquerade) && !n.def.routed(s.Subnet.Addr().Is6()) {
			b.Masquerade = append(b.Masquerade, s.Subnet)
		}
	}
	for _, p := range n.def.onBridge() {
		b.Gateways = append(b.Gateways, p.Addr())
	}
	return b
}

// direct is what a gateway mode lets in at the containers' own addresses.
func direct(mode string) firewall.Direct {
	switch mode {
	case modeRouted:
		return firewall.Published
	case modeUnprotected:
		return firewall.Open
	}
	return firewall.Closed
}

// ensureBridge makes the network's bridge if need be, and returns its index.
func (m *Manager) ensureBridge(n *network) (int, error) {
	n.dev.Lock()
	defer n.dev.Unlock()
	if n.index != 0 {
		return n.index, nil
	}
	fw, err := m.firewall()
	if err != nil {
		return 0, err
	}
	// The rules come first: the bridge is never without them.
	if err := fw.AddBridge(n.rules()); err != nil {
		return 0, err
	}
	index, err := m.makeBridge(n.def)
	if err != nil {
		fw.RemoveBridge(n.def.Device)
		return 0, err
	}
	n.index = index
	return index, nil
}

func (m *Manager) makeBridge(def Network) (index int, err error) {
	spec := link.BridgeSpec{Name: def.Device, MTU: def.MTU}
	if gateway := def.Subnets[0].Gateway; gateway.IsValid() {
		spec.MAC = link.MAC(gateway)
	}
	if err := m.root.AddBridge(spec); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			m.root.Delete(def.Device)
		}
	}()
	l, err := m.root.ByName(def.Device)
	if err != nil {
		return 0, err
	}
	// Published ports are reached from the machine's loopback; the firewall keeps
	// containers from it.
	if err := link.Sysctl("ipv4/conf/"+def.Device+"/route_localnet", "1"); err != nil {
		return 0, err
	}
	if err := m.answerFor(def); err != nil {
		return 0, err
	}
	if err := setIPv6(def.Device, def.IPv6 && def.gatewayMode(true) != modeIsolated); err != nil {
		return 0, err
	}
	if def.IPv6 {
		if err := link.Sysctl("ipv6/conf/all/forwarding", "1"); err != nil {
			return 0, fmt.Errorf("cannot switch IPv6 forwarding on: %w", err)
		}
	}
	for _, p := range def.onBridge() {
		if err := m.root.AddAddr(l.Index, p); err != nil {
			return 0, err
		}
	}
	return l.Index, m.root.SetUp(l.Index)
}

// answerFor has a bridge whose subnet lies around the uplink's answer for what is
// there: containers take it for neighbours.
func (m *Manager) answerFor(def Network) error {
	uplink, err := m.uplinkPrefixes()
	if err != nil {
		return err
	}
	for _, s := range def.Subnets {
		if s.Subnet.Addr().Is4() && overlaps(s.Subnet, uplink) {
			// At once, where the kernel would take its time, as for a host that moved.
			return errors.Join(link.Sysctl("ipv4/neigh/"+def.Device+"/proxy_delay", "0"), link.Sysctl("ipv4/conf/"+def.Device+"/proxy_arp", "1"))
		}
	}
	return nil
}

// setIPv6 switches IPv6 on or off for one interface of the calling thread's
// namespace. A kernel without IPv6 is no error unless it is needed.
func setIPv6(device string, on bool) error {
	value := "1"
	if on {
		value = "0"
	}
	err := link.Sysctl("ipv6/conf/"+device+"/disable_ipv6", value)
	if err != nil && (on || !link.IsNotExist(err)) {
		return fmt.Errorf("cannot set IPv6 on %s: %w", device, err)
	}
	return nil
}
