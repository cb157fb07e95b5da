package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthvm/berth/guest/ident"
	"github.com/berthvm/berth/guest/network/internal/ipam"
)

// ifName reports whether the kernel accepts an interface's name, and docker a
// bridge's.
func ifName(s string) bool { return s != "" && len(s) <= 15 && ident.Plain(s, "_.-") }

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func forbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

// define turns a Config into a Network, choosing what it leaves open. taken are
// the subnets it must not overlap, and uplink those of the machine's interface;
// site is where IPv6 subnets come from.
func define(cfg Config, mtu int, taken, uplink []netip.Prefix, site netip.Prefix) (Network, error) {
	n := Network{
		ID: newID(), Name: cfg.Name, Driver: cfg.Driver, Created: time.Now().UTC(),
		Internal: cfg.Internal, Attachable: cfg.Attachable, ConfigFrom: cfg.ConfigFrom, NoIPv4: cfg.NoIPv4, IPv6: cfg.IPv6,
		IPAMOpts: maps.Clone(cfg.IPAMOpts), Options: maps.Clone(cfg.Options), Labels: maps.Clone(cfg.Labels),
		MTU: mtu,
	}
	if n.Driver == "" {
		n.Driver = DriverBridge
	}
	if err := checkConfig(cfg, n.Driver); err != nil {
		return n, err
	}
	if err := n.applyOptions(); err != nil {
		return n, err
	}
	var err error
	if n.Subnets, err = chooseSubnets(cfg, n.Driver, taken, uplink, site); err != nil {
		return n, err
	}
	for i, s := range n.Subnets {
		if !s.Gateway.IsValid() && n.wantsGateway(s.Subnet.Addr().Is6()) {
			n.Subnets[i].Gateway = ipam.Gateway(s.Subnet, s.Range)
		}
	}
	return n, nil
}

// defineConfigOnly turns a Config into a network that only holds settings.
func defineConfigOnly(cfg Config) (Network, error) {
	switch {
	case cfg.Internal || cfg.Attachable:
		return Network{}, forbidden("configuration network can only contain network specific fields. " +
			"Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	case cfg.ConfigFrom != "":
		return Network{}, forbidden("a configuration network cannot depend on another configuration network")
	}
	if err := errors.Join(checkName(cfg.Name), checkSubnets(cfg)); err != nil {
		return Network{}, err
	}
	return Network{ID: newID(), Name: cfg.Name, Driver: DriverNull, Created: time.Now().UTC(), ConfigOnly: true, NoIPv4: cfg.NoIPv4,
		IPv6: cfg.IPv6, Subnets: cfg.Subnets, IPAMOpts: maps.Clone(cfg.IPAMOpts), Options: maps.Clone(cfg.Options), Labels: maps.Clone(cfg.Labels)}, nil
}

// from returns cfg with the settings of a network that only holds some.
func (cfg Config) from(n Network) (Config, error) {
	switch {
	case cfg.IPAMDriver != "" && cfg.IPAMDriver != "default", cfg.NoIPv4, cfg.IPv6, len(cfg.Labels) > 0, len(cfg.IPAMOpts) > 0, len(cfg.Subnets) > 0:
		return cfg, forbidden("user-specified configurations are not supported if the network depends on a configuration network")
	case len(cfg.Options) > 0:
		return cfg, forbidden("network driver options are not supported if the network depends on a configuration network")
	}
	cfg.NoIPv4, cfg.IPv6, cfg.Subnets = n.NoIPv4, n.IPv6, n.Subnets
	cfg.IPAMOpts, cfg.Options, cfg.Labels = n.IPAMOpts, n.Options, n.Labels
	return cfg, nil
}

func checkName(name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return invalid("invalid name: name is empty")
	case strings.ContainsAny(name, "/\x00\n"):
		return invalid("invalid network name %q", name)
	case name == Bridge || name == Host || name == None || name == "default":
		return forbidden("operation is not permitted on predefined %s network ", name)
	}
	return nil
}

func checkConfig(cfg Config, driver string) error {
	if err := checkName(cfg.Name); err != nil {
		return err
	}
	switch {
	case driver == DriverHost || driver == DriverNull:
		return forbidden("only one instance of %q network is allowed", driver)
	case driver != DriverBridge && driver != DriverMacvlan && driver != DriverIPvlan:
		return notFound("could not find plugin %s in v1 plugin registry: plugin not found", driver)
	case cfg.IPAMDriver != "" && cfg.IPAMDriver != "default":
		return invalid("invalid ipam driver %q: only the default one is supported", cfg.IPAMDriver)
	case cfg.NoIPv4 && !cfg.IPv6 && driver == DriverBridge:
		return invalid("IPv4 or IPv6 must be enabled")
	}
	return nil
}

// applyOptions reads the driver's options that are not read where they are used.
func (n *Network) applyOptions() error {
	if n.Driver == DriverBridge {
		n.Device = "br-" + n.ID[:12]
	}
	if err := n.applyParent(); err != nil {
		return err
	}
	if name, ok := n.Options[OptionBridgeName]; ok && n.Driver == DriverBridge {
		if !ifName(name) || name == "." || name == ".." {
			return invalid("invalid bridge name %q: at most 15 letters, digits and . _ -", name)
		}
		n.Device = name
	}
	if s, ok := n.Options[OptionMTU]; ok {
		mtu, err := strconv.Atoi(s)
		switch {
		case err != nil:
			return invalid("failed to parse %s value: %s (%v)", OptionMTU, s, err)
		case mtu != 0 && (mtu < 68 || mtu > 65535):
			return invalid("invalid MTU number: %d", mtu)
		case mtu == 0:
			mtu = n.MTU
		}
		n.MTU = mtu
	}
	if p, ok := n.Options[OptionIfPrefix]; ok && (!ifName(p) || len(p) > 12) {
		return invalid("invalid interface prefix %q", p)
	}
	for _, o := range []string{OptionICC, OptionMasquerade, OptionInhibit4} {
		if s, ok := n.Options[o]; ok {
			if _, err := strconv.ParseBool(s); err != nil {
				return invalid("failed to parse %s value: %s (%v)", o, s, err)
			}
		}
	}
	if s, ok := n.Options[OptionHostBinding]; ok {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid("failed to parse %s value: %s (nil ip)", OptionHostBinding, s)
		}
	}
	for _, name := range n.trusted() {
		if !ifName(name) {
			return invalid("invalid interface name %q in %s: at most 15 letters, digits and . _ -", name, OptionTrusted)
		}
	}
	for _, o := range []string{OptionMode4, OptionMode6} {
		switch mode := n.Options[o]; mode {
		case "", modeNAT, modeUnprotected, modeRouted:
		case modeIsolated:
			if !n.Internal {
				return invalid("gateway mode 'isolated' can only be used for an internal network")
			}
		default:
			return invalid("failed to parse %s value: %s (unknown gateway mode %s)", o, mode, mode)
		}
	}
	return nil
}

// How a family's packets leave and enter a bridge. By default they take the machine's
// address on their way out and reach published ports only, at the machine's addresses.
const (
	modeNAT         = "nat"
	modeUnprotected = "nat-unprotected" // every port is reached at the container's own address, too
	modeRouted      = "routed"          // nothing is translated: published ports are reached at the container's own address
	modeIsolated    = "isolated"        // the machine itself is not on the bridge
)

// gatewayMode is one of those.
func (n Network) gatewayMode(v6 bool) string {
	if v6 {
		return optionOr(n.Options, OptionMode6, modeNAT)
	}
	return optionOr(n.Options, OptionMode4, modeNAT)
}

// routed reports whether nothing of a family is translated.
func (n Network) routed(v6 bool) bool { return n.gatewayMode(v6) == modeRouted }

// trusted are the interfaces that OptionTrusted names.
func (n Network) trusted() []string {
	names := strings.FieldsFunc(n.Options[OptionTrusted], func(r rune) bool { return r == ':' })
	slices.Sort(names)
	return slices.Compact(names)
}

// onBridge returns the addresses that the bridge itself has.
func (n Network) onBridge() (own []netip.Prefix) {
	for _, s := range n.Subnets {
		a := s.Gateway
		if a.IsValid() && n.gatewayMode(a.Is6()) != modeIsolated && !(a.Is4() && n.inhibits4()) {
			own = append(own, netip.PrefixFrom(a, s.Subnet.Bits()))
		}
	}
	return own
}

// wantsGateway reports whether a subnet of the network needs a gateway that nobody
// named: not where it is somebody else's, nor where no packet may pass it.
func (n Network) wantsGateway(v6 bool) bool {
	switch {
	case n.onParent() || n.gatewayMode(v6) == modeIsolated:
		return false
	case !v6 && n.inhibits4() && n.Internal:
		return false
	}
	return true
}

// inhibits4 reports whether the bridge has no IPv4 address of its own.
func (n Network) inhibits4() bool {
	on, err := strconv.ParseBool(n.Options[OptionInhibit4])
	return err == nil && on
}

// HostBinding is the address of the host's that ports of the network are published
// at where nobody says otherwise; the zero value means all.
func (n Network) HostBinding() netip.Addr {
	a, err := netip.ParseAddr(n.Options[OptionHostBinding])
	if err != nil || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// flag is an option that is on unless it is said to be off.
func (n Network) flag(option string) bool {
	on, err := strconv.ParseBool(n.Options[option])
	return err != nil || on
}

// ifPrefix is how a container's interfaces on n are named.
func (n Network) ifPrefix() string {
	if p := n.Options[OptionIfPrefix]; p != "" {
		return p
	}
	return "eth"
}

// chooseSubnets checks the subnets of a wish and chooses those it leaves open, and
// returns those of IPv4 first. What a wish says of a family that the network does not
// have is ignored, as docker has it.
func chooseSubnets(cfg Config, driver string, taken, uplink []netip.Prefix, site netip.Prefix) ([]Subnet, error) {
	if err := checkSubnets(cfg); err != nil {
		return nil, err
	}
	onParent := driver == DriverMacvlan || driver == DriverIPvlan
	if onParent { // its addresses are of the world outside
		uplink = nil
	}
	var out []Subnet
	have4, have6 := cfg.NoIPv4, !cfg.IPv6
	for _, s := range cfg.Subnets {
		v6 := s.Subnet.Addr().Is6()
		if !s.Subnet.IsValid() || v6 && !cfg.IPv6 || !v6 && cfg.NoIPv4 {
			continue
		}
		if s.Subnet.Addr().IsUnspecified() {
			r := ipam.Request{Global: onParent, Bits: s.Subnet.Bits(), Taken: slices.Concat(taken, uplink)}
			if v6 {
				r.Site = site
			}
			p, err := choose(r)
			if err != nil {
				return nil, err
			}
			s.Subnet = p
		} else if overlaps(s.Subnet, taken) && !(onParent && s.Range.IsValid()) {
			return nil, forbidden("invalid pool request: Pool overlaps with other one on this address space")
		} else if i := slices.IndexFunc(uplink, s.hides); i >= 0 {
			return nil, forbidden("invalid pool request: Pool overlaps with %s, by which the machine reaches its host", uplink[i].Masked())
		}
		taken = append(taken[:len(taken):len(taken)], s.Subnet)
		have4, have6 = have4 || !v6, have6 || v6
		out = append(out, s)
	}
	if !have4 {
		p, err := choose(ipam.Request{Global: onParent, Taken: slices.Concat(taken, uplink)})
		if err != nil {
			return nil, err
		}
		out = append(out, Subnet{Subnet: p})
	}
	if !have6 {
		p, err := choose(ipam.Request{Site: site, Taken: taken})
		if err != nil {
			return nil, err
		}
		out = append(out, Subnet{Subnet: p})
	}
	slices.SortStableFunc(out, func(a, b Subnet) int { return a.Subnet.Addr().BitLen() - b.Subnet.Addr().BitLen() })
	return out, nil
}

// hides says whether a network with the subnet would take the way to the machine's
// neighbours on its uplink. A subnet that lies around the uplink's, as the 192.168.0.0/16
// of docker's own examples, leaves it the narrower route.
func (s Subnet) hides(uplink netip.Prefix) bool {
	first := s.Subnet.Addr()
	if s.Range.IsValid() {
		first = s.Range.Masked().Addr()
	}
	return s.Subnet.Overlaps(uplink) && (s.Subnet.Bits() >= uplink.Bits() || uplink.Contains(first) || uplink.Contains(s.Gateway))
}

// Pool is a range of addresses that networks without a subnet of their own get one
// of: of Bits bits.
type Pool = ipam.Block

// DefaultPools are docker's.
func DefaultPools() []Pool { return ipam.Locals() }

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	return slices.ContainsFunc(taken, p.Overlaps)
}

// choose is ipam.Choose with docker's words.
func choose(r ipam.Request) (netip.Prefix, error) {
	p, err := ipam.Choose(r)
	switch {
	case errors.Is(err, ipam.ErrSize):
		return p, invalid("invalid address pool")
	case err != nil:
		return p, invalid("all predefined address pools have been fully subnetted")
	}
	return p, nil
}

// checkSubnets says all that is wrong with the subnets of a wish.
func checkSubnets(cfg Config) error {
	var wrong []string
	for _, s := range cfg.Subnets {
		if !s.Subnet.IsValid() {
			// Docker takes an entry without a subnet as a wish for the chosen one,
			// and so a gateway or range alone has nothing to lie in.
			if s.Range.IsValid() || s.Gateway.IsValid() || len(s.Aux) > 0 {
				wrong = append(wrong, "no matching subnet for the gateway, range or auxiliary address")
			}
			continue
		}
		if s.Subnet.Addr().Is6() && !cfg.IPv6 {
			continue
		}
		wrong = append(wrong, s.problems()...)
	}
	switch len(wrong) {
	case 0:
		return nil
	case 1:
		return invalid("invalid network config:\n%s", wrong[0])
	}
	return invalid("invalid network config:\n* %s", strings.Join(wrong, "\n* "))
}

// linkLocal is the prefix from which the kernel gives interfaces addresses. A network
// may have it, or another of fe80::/10.
var linkLocal = netip.MustParsePrefix("fe80::/64")

// problems lists what is wrong with a subnet.
func (s Subnet) problems() []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	p := s.Subnet
	switch {
	case p.Addr().Is4In6():
		say("invalid subnet %s: write it as IPv4", p)
		return wrong
	case p != p.Masked():
		say("invalid subnet %s: it should be %s", p, p.Masked())
	case p.Addr().IsUnspecified():
	case p.Addr().BitLen()-p.Bits() < 1:
		say("invalid subnet %s: it is too small", p)
	case p.Addr().IsMulticast(), p.Addr().IsLoopback(), p.Addr().Is4() && p.Addr().IsLinkLocalUnicast():
		say("invalid subnet %s: it cannot be used for containers", p)
	case p != linkLocal && p.Overlaps(linkLocal):
		say("invalid subnet %s: it clashes with the link-local prefix %s", p, linkLocal)
	}
	if r := s.Range; r.IsValid() {
		switch {
		case r.Addr().Is4() != p.Addr().Is4():
			say("invalid ip-range %s: parent subnet is an %s block", r, family(p.Addr()))
		case r.Bits() < p.Bits():
			say("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r, p)
		case r != r.Masked():
			say("invalid ip-range %s: it should be %s", r, r.Masked())
		case !p.Overlaps(r):
			say("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r, p)
		}
	}
	inside := func(what string, a netip.Addr) {
		switch {
		case a.Is4() != p.Addr().Is4():
			say("%s: parent subnet is an %s block", what, family(p.Addr()))
		case !p.Contains(a):
			say("%s: parent subnet %s doesn't contain this address", what, p)
		}
	}
	if s.Gateway.IsValid() {
		inside("invalid gateway "+s.Gateway.String(), s.Gateway)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Aux)) {
		inside("invalid auxiliary address "+name, s.Aux[name])
	}
	return wrong
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// predefined returns the networks that always exist.
func predefined(opts Options) []Network {
	sub := Subnet{Subnet: opts.DefaultSubnet.Masked(), Gateway: opts.DefaultSubnet.Addr()}
	if sub.Gateway == sub.Subnet.Addr() {
		sub.Gateway = ipam.Gateway(sub.Subnet, netip.Prefix{})
	}
	return []Network{
		{ID: predefinedID(Bridge), Name: Bridge, Driver: DriverBridge, Subnets: []Subnet{sub}, Device: "docker0", MTU: opts.MTU,
			Options: map[string]string{
				"com.docker.network.bridge.default_bridge":    "true",
				"com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
				OptionICC: "true", OptionMasquerade: "true", OptionBridgeName: "docker0", OptionMTU: strconv.Itoa(opts.MTU),
			}},
		{ID: predefinedID(Host), Name: Host, Driver: DriverHost},
		{ID: predefinedID(None), Name: None, Driver: DriverNull},
	}
}

// clone gives the caller maps and slices of his own.
func (n Network) clone() Network {
	n.Subnets = slices.Clone(n.Subnets)
	for i := range n.Subnets {
		n.Subnets[i].Aux = maps.Clone(n.Subnets[i].Aux)
	}
	n.IPAMOpts, n.Options, n.Labels = maps.Clone(n.IPAMOpts), maps.Clone(n.Options), maps.Clone(n.Labels)
	return n
}

func (e Endpoint) clone() Endpoint {
	e.Names, e.Links, e.DriverOpts = slices.Clone(e.Names), maps.Clone(e.Links), maps.Clone(e.DriverOpts)
	return e
}
