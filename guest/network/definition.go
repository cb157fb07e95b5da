package network

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthvm/berth/guest/network/internal/ipam"
)

// ifName is what the kernel accepts as an interface's name, and docker as a
// bridge's.
var ifName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func forbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

// define turns a Config into a Network, choosing what it leaves open. taken are
// the subnets it must not overlap; site is where IPv6 subnets come from.
func define(cfg Config, mtu int, taken []netip.Prefix, site netip.Prefix) (Network, error) {
	n := Network{
		ID: newID(), Name: cfg.Name, Driver: cfg.Driver, Created: time.Now().UTC(),
		Internal: cfg.Internal, Attachable: cfg.Attachable, NoIPv4: cfg.NoIPv4, IPv6: cfg.IPv6,
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
	n.Subnets, err = chooseSubnets(cfg, taken, site)
	return n, err
}

func checkConfig(cfg Config, driver string) error {
	switch {
	case strings.TrimSpace(cfg.Name) == "":
		return invalid("invalid name: name is empty")
	case strings.ContainsAny(cfg.Name, "/\x00\n"):
		return invalid("invalid network name %q", cfg.Name)
	case cfg.Name == Bridge || cfg.Name == Host || cfg.Name == None:
		return forbidden("operation is not permitted on predefined %s network", cfg.Name)
	case driver == DriverHost || driver == DriverNull:
		return forbidden("only one instance of %q network is allowed", driver)
	case driver != DriverBridge:
		return notFound("could not find plugin %s in v1 plugin registry: plugin not found", driver)
	case cfg.IPAMDriver != "" && cfg.IPAMDriver != "default":
		return invalid("invalid ipam driver %q: only the default one is supported", cfg.IPAMDriver)
	case cfg.NoIPv4 && !cfg.IPv6:
		return invalid("IPv4 or IPv6 must be enabled")
	}
	return nil
}

// applyOptions reads the driver's options that are not read where they are used.
func (n *Network) applyOptions() error {
	n.Device = "br-" + n.ID[:12]
	if name, ok := n.Options[OptionBridgeName]; ok {
		if !ifName.MatchString(name) || name == "." || name == ".." {
			return invalid("invalid bridge name %q: at most 15 letters, digits and . _ -", name)
		}
		n.Device = name
	}
	if s, ok := n.Options[OptionMTU]; ok {
		mtu, err := strconv.Atoi(s)
		if err != nil || mtu < 68 || mtu > 65535 {
			return invalid("invalid MTU %q: a number from 68 to 65535 is expected", s)
		}
		n.MTU = mtu
	}
	if p, ok := n.Options[OptionIfPrefix]; ok && (!ifName.MatchString(p) || len(p) > 12) {
		return invalid("invalid interface prefix %q", p)
	}
	for _, o := range []string{OptionICC, OptionMasquerade} {
		if s, ok := n.Options[o]; ok {
			if _, err := strconv.ParseBool(s); err != nil {
				return invalid("invalid value %q for %s: true or false is expected", s, o)
			}
		}
	}
	return nil
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

func chooseSubnets(cfg Config, taken []netip.Prefix, site netip.Prefix) ([]Subnet, error) {
	var out []Subnet
	have4, have6 := cfg.NoIPv4, !cfg.IPv6
	for _, s := range cfg.Subnets {
		if !s.Subnet.IsValid() {
			// Docker takes an entry without a subnet as a wish for the chosen one,
			// and so a gateway or range alone has nothing to lie in.
			if s.Range.IsValid() || s.Gateway.IsValid() || len(s.Aux) > 0 {
				return nil, invalid("invalid network config: no matching subnet for the gateway, range or auxiliary address")
			}
			continue
		}
		if err := checkSubnet(&s, cfg); err != nil {
			return nil, err
		}
		for _, t := range taken {
			if t.Overlaps(s.Subnet) {
				return nil, forbidden("invalid pool request: Pool overlaps with other one on this address space")
			}
		}
		taken = append(taken[:len(taken):len(taken)], s.Subnet)
		have4 = have4 || s.Subnet.Addr().Is4()
		have6 = have6 || s.Subnet.Addr().Is6()
		out = append(out, s)
	}
	add := func(p netip.Prefix, err error) error {
		if err != nil {
			return errdefs.ErrResourceExhausted.WithMessage(err.Error())
		}
		out = append(out, Subnet{Subnet: p, Gateway: ipam.Gateway(p)})
		return nil
	}
	if !have4 {
		if err := add(ipam.Choose4(taken)); err != nil {
			return nil, err
		}
	}
	if !have6 {
		if err := add(ipam.Choose6(site, taken)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func checkSubnet(s *Subnet, cfg Config) error {
	p := s.Subnet
	switch {
	case p.Addr().Is4In6():
		return invalid("invalid subnet %s: write it as IPv4", p)
	case p != p.Masked():
		return invalid("invalid network config:\ninvalid subnet %s: it should be %s", p, p.Masked())
	case p.Addr().Is4() && cfg.NoIPv4:
		return invalid("invalid network config:\nIPv4 is disabled, but subnet %s was given", p)
	case p.Addr().Is6() && !cfg.IPv6:
		return invalid("invalid network config:\nIPv6 is not enabled, but subnet %s was given: use --ipv6", p)
	case p.Addr().BitLen()-p.Bits() < 2:
		return invalid("invalid network config:\nsubnet %s is too small", p)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
		return invalid("invalid network config:\nsubnet %s cannot be used for containers", p)
	}
	if !s.Gateway.IsValid() {
		s.Gateway = ipam.Gateway(p)
	}
	if !p.Contains(s.Gateway) {
		return invalid("invalid network config:\ninvalid gateway %s: parent subnet %s doesn't contain the gateway", s.Gateway, p)
	}
	if s.Range.IsValid() && (!p.Contains(s.Range.Addr()) || s.Range.Bits() < p.Bits()) {
		return invalid("invalid network config:\ninvalid ip-range %s: parent subnet %s doesn't contain ip-range", s.Range, p)
	}
	for name, a := range s.Aux {
		if !p.Contains(a) {
			return invalid("invalid network config:\ninvalid auxiliary address %s=%s: parent subnet %s doesn't contain it", name, a, p)
		}
	}
	return nil
}

// predefined returns the networks that always exist.
func predefined(opts Options) []Network {
	sub := Subnet{Subnet: opts.DefaultSubnet.Masked(), Gateway: opts.DefaultSubnet.Addr()}
	if sub.Gateway == sub.Subnet.Addr() {
		sub.Gateway = ipam.Gateway(sub.Subnet)
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
