// Package network connects containers, as Docker's networks do: the default
// bridge (docker0), bridges that users define, macvlan and ipvlan on an interface of
// the machine's, host and none.
//
// A Manager owns what it makes: bridges, veth pairs, VLANs, network namespaces, the
// nftables table "berth", addresses, and the DNS servers of containers. It talks
// netlink and execs nothing. Definitions of networks live on the data disk
// (Options.StateDir) and survive the machine; endpoints live in Options.RunDir,
// on a tmpfs, and survive the engine: after a restart of the engine, Open reads
// them and Restore takes up what is in use and removes what is left over.
//
// # Order of calls
//
// Open; Restore once the caller knows which containers run; Prepare in the
// background, which makes ahead of time what the first container would wait for.
// For a container: NewNS, Attach for each of its networks, Publish if it has
// ports; then Release when it has stopped, which undoes all of it.
// Nothing of a network exists in the kernel before the first container attaches
// to it (or Prepare), and an idle Manager runs no goroutine except one pair for
// each container that has a DNS server.
//
// # What a packet may do
//
// Containers of one bridge reach each other (unless the network was made with
// enable_icc=false), the gateway's address and, unless the network is internal,
// the world behind the machine's own interface, masqueraded. Nothing is
// forwarded between two bridges, nor from outside to a container, except to
// published ports by addresses of the machine's, and what a network's gateway mode
// lets in besides: see OptionMode4. A container cannot reach the guest's loopback.
//
// What a macvlan or ipvlan interface sends does not pass the machine: the driver's
// mode says who hears it, and the machine itself and its published ports do not
// reach the container.
//
// # DNS
//
// A container on a user-defined network asks 127.0.0.11, which a redirect in its
// own namespace takes to a socket of the engine's. It resolves the names of
// endpoints on the container's networks and sends the rest to Options.DNS.
// Containers on the default bridge and on host ask Options.DNS themselves.
//
// # The loopback
//
// A container's loopback is its own, unless LendLoopback has its connections end
// elsewhere: then a redirect in its namespace takes them to a socket of the engine's.
//
// Errors that a client caused are of the classes of
// github.com/containerd/errdefs, with the message that docker gives. All methods
// are safe for concurrent use.
package network
