package engine

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/network"
)

// wantedNetworks returns the networks to attach at start, by name: those that are
// listed or, where none is, that of the network mode. A network that is not there
// yet keeps the name it was given.
func (e *Engine) wantedNetworks(o CreateOptions) (map[string]*apinet.EndpointSettings, error) {
	want := map[string]*apinet.EndpointSettings{}
	var listed map[string]*apinet.EndpointSettings
	if o.Networking != nil {
		listed = o.Networking.EndpointsConfig
	}
	var wrong []error
	for _, key := range slices.Sorted(maps.Keys(listed)) {
		ep := listed[key]
		if ep == nil {
			wrong = append(wrong, fmt.Errorf("invalid config for network %s: EndpointsConfig is nil", key))
			continue
		}
		if key == apinet.NetworkDefault {
			key = network.Bridge
		}
		name, n := e.networkName(key, ep.NetworkID)
		if err := checkEndpoint(n, name, ep); err != nil {
			wrong = append(wrong, fmt.Errorf("invalid config for network %s: %w", key, err))
		}
		want[name] = asked(ep)
	}
	if err := list(wrong); err != nil {
		return nil, invalid("%v", err)
	}
	switch {
	case o.HostConfig.NetworkMode.IsContainer():
		return map[string]*apinet.EndpointSettings{}, nil
	case o.Config.NetworkDisabled:
		return map[string]*apinet.EndpointSettings{network.None: {}}, nil
	}
	if len(want) == 0 {
		name, _ := e.networkName(string(o.HostConfig.NetworkMode), "")
		want[name] = &apinet.EndpointSettings{}
	}
	return want, nil
}

// networkName resolves what a network is called. n is nil when there is none.
func (e *Engine) networkName(key, id string) (name string, n *network.Network) {
	for _, k := range []string{id, key} {
		if k == "" {
			continue
		}
		if found, err := e.opts.Networks.Get(k); err == nil {
			return found.Name, &found
		}
	}
	return key, nil
}

// asked is what an endpoint's settings ask for, without what an earlier endpoint
// had: clients send back what they were shown.
func asked(ep *apinet.EndpointSettings) *apinet.EndpointSettings {
	return &apinet.EndpointSettings{IPAMConfig: ep.IPAMConfig.Copy(), Links: ep.Links, Aliases: ep.Aliases, DriverOpts: ep.DriverOpts,
		GwPriority: ep.GwPriority, MacAddress: ep.MacAddress}
}

// list is errors as docker lists them: one alone, several with a star each.
func list(errs []error) error {
	var texts []string
	for _, err := range errs {
		texts = append(texts, strings.ReplaceAll(err.Error(), "\n", "\n\t"))
	}
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return errors.New("* " + strings.Join(texts, "\n* "))
}

// checkEndpoint says what is wrong with an endpoint's settings; n is nil while the
// network does not exist.
func checkEndpoint(n *network.Network, name string, ep *apinet.EndpointSettings) error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	ipam := ep.IPAMConfig
	if ipam == nil {
		ipam = &apinet.EndpointIPAMConfig{}
	}
	if !apicontainer.NetworkMode(name).IsUserDefined() {
		if ipam.IPv4Address.IsValid() || ipam.IPv6Address.IsValid() {
			say("user-specified IP address is supported on user-defined networks only")
		}
		if len(ep.Aliases) > 0 {
			say("network-scoped aliases are only supported for user-defined networks")
		}
	}
	v4, v6 := ipam.IPv4Address.Unmap(), ipam.IPv6Address
	if v4.IsValid() && (!v4.Is4() || v4.IsUnspecified()) {
		say("invalid IPv4 address: %s", ipam.IPv4Address)
	}
	if v6.IsValid() && (!v6.Is6() || v6.Is4In6() || v6.IsUnspecified() || v6.Zone() != "") {
		say("invalid IPv6 address: %s", v6)
	}
	for _, a := range ipam.LinkLocalIPs {
		if !a.IsLinkLocalUnicast() {
			say("invalid link-local IP address: %s", a)
		}
	}
	for _, a := range []netip.Addr{v4, v6} {
		if n != nil && a.IsValid() && !slices.ContainsFunc(n.Subnets, func(s network.Subnet) bool { return s.Subnet.Contains(a) }) {
			say("no configured subnet contains IP address %s", a)
		}
	}
	if err := network.CheckEndpointOptions(ep.DriverOpts); err != nil {
		wrong = append(wrong, err)
	}
	if err := list(wrong); err != nil {
		return fmt.Errorf("invalid endpoint settings:\n%w", err)
	}
	return nil
}

// sortedNetworks returns the wanted networks, that of the network mode first.
func (e *Engine) sortedNetworks(rec *record.Record) []string {
	names := slices.Sorted(maps.Keys(rec.Endpoints))
	mode, _ := e.networkName(string(rec.HostConfig.NetworkMode), "")
	if i := slices.Index(names, mode); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, mode)
	}
	return names
}
