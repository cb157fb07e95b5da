package network

import (
	"strconv"
	"strings"
)

// Options of the drivers macvlan and ipvlan, under docker's names.
const (
	OptionParent      = "parent"       // the machine's interface, or "eth0.10" for a VLAN of it
	OptionMacvlanMode = "macvlan_mode" // bridge by default, private, vepa or passthru
	OptionIPvlanMode  = "ipvlan_mode"  // l2 by default, l3 or l3s
	OptionIPvlanFlag  = "ipvlan_flag"  // bridge by default, private or vepa
)

// The modes that are told apart here; the others are the kernel's business.
const (
	modePassthru = "passthru"
	modeL3       = "l3"
	modeL3S      = "l3s"
)

// onParent reports whether the network's containers sit on an interface of the
// machine's instead of on a bridge of ours.
func (n Network) onParent() bool { return n.Driver == DriverMacvlan || n.Driver == DriverIPvlan }

// hasInterfaces reports whether a container has an interface for the network.
func (n Network) hasInterfaces() bool { return n.Driver == DriverBridge || n.onParent() }

// isolated reports whether there is no way out of the network.
func (n Network) isolated() bool {
	return n.Internal || n.onParent() && n.Options[OptionParent] == ""
}

// direct reports whether a container's default route leads to its interface, with
// no gateway in between.
func (n Network) direct() bool {
	return n.Driver == DriverIPvlan && !n.isolated() && n.mode() != "l2"
}

// mode is the driver's mode.
func (n Network) mode() string {
	switch n.Driver {
	case DriverMacvlan:
		return optionOr(n.Options, OptionMacvlanMode, "bridge")
	case DriverIPvlan:
		return optionOr(n.Options, OptionIPvlanMode, "l2")
	}
	return ""
}

func optionOr(options map[string]string, name, otherwise string) string {
	if v := options[name]; v != "" {
		return v
	}
	return otherwise
}

// applyParent reads the options of macvlan and ipvlan.
func (n *Network) applyParent() error {
	switch n.Driver {
	case DriverMacvlan:
		switch n.mode() {
		case "bridge", "private", "vepa", modePassthru:
		default:
			return invalid("requested macvlan mode '%s' is not valid, 'bridge' mode is the macvlan driver default", n.mode())
		}
		n.Parent = "dm-" + n.ID[:12]
	case DriverIPvlan:
		switch n.mode() {
		case "l2", modeL3, modeL3S:
		default:
			return invalid("requested ipvlan mode '%s' is not valid, 'l2' mode is the ipvlan driver default", n.mode())
		}
		switch flag := optionOr(n.Options, OptionIPvlanFlag, "bridge"); flag {
		case "bridge", "private", "vepa":
		default:
			return invalid("requested ipvlan flag '%s' is not valid, 'bridge' is the ipvlan driver default", flag)
		}
		n.Parent = "di-" + n.ID[:12]
	}
	parent := n.Options[OptionParent]
	switch {
	case parent == "":
		return nil
	case parent == "lo":
		return invalid("loopback interface is not a valid %s parent link", n.Driver)
	case !ifName(parent):
		return invalid("invalid parent interface %q: at most 15 letters, digits and . _ -", parent)
	}
	n.Parent = parent
	return nil
}

// parentConflict says why n and an existing network cannot have the same parent.
func (n Network) parentConflict(other Network) error {
	switch {
	case !n.onParent() || n.Parent != other.Parent:
		return nil
	case n.Driver == DriverIPvlan && other.Driver == DriverIPvlan:
		return forbidden("network di-%s is already using parent interface %s", other.ID[:12], n.Parent)
	case n.Driver != other.Driver:
		return forbidden("%s network %s is already using parent interface %s: the kernel has either macvlan or ipvlan on an interface",
			other.Driver, other.Name, n.Parent)
	case n.mode() == modePassthru:
		return forbidden("cannot use mode passthru, macvlan network %s is already using parent interface %s", other.ID, n.Parent)
	case other.mode() == modePassthru:
		return forbidden("macvlan network %s is already using parent interface %s in mode passthru", other.ID, n.Parent)
	}
	return nil
}

// parseVLAN reads the name of a VLAN's interface: "eth0.10".
func parseVLAN(name string) (parent string, id int, err error) {
	parent, number, ok := strings.Cut(name, ".")
	if !ok {
		return "", 0, invalid("invalid subinterface vlan name %s, example formatting is eth0.10", name)
	}
	if parent == "" || strings.Contains(number, ".") {
		return "", 0, invalid("required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received %s", name)
	}
	id, err = strconv.Atoi(number)
	if err != nil {
		return "", 0, invalid("unable to parse a valid vlan id from: %s (ex. eth0.10 for vlan 10)", number)
	}
	if id < 1 || id > 4094 {
		return "", 0, invalid("vlan id must be between 1-4094, received: %d", id)
	}
	return parent, id, nil
}
