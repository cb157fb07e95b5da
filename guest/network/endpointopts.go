package network

import (
	"path"
	"slices"
	"strings"
)

// Options of an endpoint, under docker's names.
const (
	// OptionIfname is the name of the interface in the container.
	OptionIfname = "com.docker.network.endpoint.ifname"
	// OptionSysctls are settings of the interface: "net.ipv4.conf.IFNAME.forwarding=1",
	// several with commas in between.
	OptionSysctls = "com.docker.network.endpoint.sysctls"
)

// sysctl is one setting of an interface: a name below /proc/sys/net, with a place
// for the interface, and the value.
type sysctl struct{ family, kind, name, value string }

// path is the setting's name for an interface, as link.Sysctl takes it.
func (s sysctl) path(iface string) string { return path.Join(s.family, s.kind, iface, s.name) }

// parseSysctls reads OptionSysctls. A list that CheckEndpointOptions refuses gives
// an error.
func parseSysctls(list string) ([]sysctl, error) {
	if list == "" {
		return nil, nil
	}
	var out []sysctl
	for item := range strings.SplitSeq(list, ",") {
		name, value, ok := strings.Cut(item, "=")
		parts := strings.Split(name, ".")
		if !ok || len(parts) != 5 || parts[0] != "net" || !strings.EqualFold(parts[3], "IFNAME") ||
			parts[1] != "ipv4" && parts[1] != "ipv6" && parts[1] != "mpls" || strings.ContainsAny(name, "/\x00") || parts[2] == "" || parts[4] == "" {
			return nil, invalid("unrecognised network interface sysctl '%s'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "+
				"'X' must be 'ipv4', 'ipv6' or 'mpls'", item)
		}
		out = append(out, sysctl{parts[1], parts[2], parts[4], value})
	}
	return out, nil
}

// disablesIPv6 says whether OptionSysctls switch the interface's IPv6 off.
func disablesIPv6(list string) bool {
	settings, err := parseSysctls(list)
	return err == nil && slices.Contains(settings, sysctl{"ipv6", "conf", "disable_ipv6", "1"})
}

// CheckEndpointOptions says what is wrong with an endpoint's driver options.
func CheckEndpointOptions(options map[string]string) error {
	if _, err := parseSysctls(options[OptionSysctls]); err != nil {
		return err
	}
	if name, ok := options[OptionIfname]; ok && (!ifName(name) || name == "." || name == ".." || name == "lo" || name == "all" || name == "default") {
		return invalid("invalid interface name %q: at most 15 letters, digits and . _ -", name)
	}
	return nil
}
