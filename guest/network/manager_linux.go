package network

import (
	"context"
	"errors"
	"net/netip"
)

var errTODO = errors.New("not yet")

// Manager owns the machine's networks.
type Manager struct{}

// Open reads the state and makes ready. It changes nothing in the kernel.
func Open(ctx context.Context, opts Options) (*Manager, error) { return nil, errTODO }

// Close stops the DNS servers and frees what this process holds. Networks and
// endpoints stay as they are, for the next Open: containers outlive the engine.
func (m *Manager) Close() error { return nil }

// Restore takes up the endpoints of the containers that keep reports to run, and
// removes everything else that an earlier Manager left: other containers'
// endpoints, interfaces, namespaces, rules. What is in use is not interrupted.
func (m *Manager) Restore(ctx context.Context, keep func(containerID string) bool) error {
	return errTODO
}

// Prepare makes docker0, the firewall's table and a spare namespace, so that the
// first container need not wait for them. It is meant for the background once
// the engine answers; without it they are made when they are first needed.
func (m *Manager) Prepare(ctx context.Context) error { return errTODO }

// Create makes a network. An error is errdefs' AlreadyExists (the name),
// InvalidArgument, PermissionDenied (a predefined name) or, when no subnet is
// free, ResourceExhausted.
func (m *Manager) Create(ctx context.Context, cfg Config) (Network, error) {
	return Network{}, errTODO
}

// Remove removes a network that no endpoint uses.
func (m *Manager) Remove(ctx context.Context, nameOrID string) error { return errTODO }

// Get finds a network by name, ID, or a prefix of an ID that fits one only.
func (m *Manager) Get(nameOrID string) (Network, error) { return Network{}, errTODO }

// List returns all networks, sorted by name.
func (m *Manager) List() []Network { return nil }

// NewNS makes a network namespace with its loopback up and pins it; it survives
// the engine. The path is what Attach and a runtime spec take. A second call for
// the same id returns the same namespace.
func (m *Manager) NewNS(ctx context.Context, id string) (path string, err error) {
	return "", errTODO
}

// RemoveNS undoes NewNS; the kernel frees the namespace when its last process
// has gone. It is no error if there is none.
func (m *Manager) RemoveNS(ctx context.Context, id string) error { return errTODO }

// Attach connects a container to a network: on a running one, too. On host and
// none it only records the endpoint. Afterwards the container's default route
// and DNS server fit all its endpoints. A failed Attach leaves nothing behind.
func (m *Manager) Attach(ctx context.Context, req AttachRequest) (Endpoint, error) {
	return Endpoint{}, errTODO
}

// Detach undoes one Attach. The error is errdefs' NotFound when the container is
// not on that network.
func (m *Manager) Detach(ctx context.Context, containerID, network string) error { return errTODO }

// Release takes everything back that a container has: published ports, DNS
// server, endpoints, and the namespace that NewNS made for its ID. It is no error
// if there is nothing, so it may be called for any container that has stopped.
func (m *Manager) Release(ctx context.Context, containerID string) error { return errTODO }

// Rename changes a container's name and, on every endpoint of its, the DNS name
// that was the old one.
func (m *Manager) Rename(ctx context.Context, containerID, name string) error { return errTODO }

// Endpoints returns a container's endpoints, the one with the default route
// first.
func (m *Manager) Endpoints(containerID string) []Endpoint { return nil }

// NetworkEndpoints returns the endpoints on a network, sorted by container ID.
func (m *Manager) NetworkEndpoints(nameOrID string) ([]Endpoint, error) { return nil, errTODO }

// Publish replaces the ports that are published for a container. They follow its
// default route when networks come and go. Port's HostPort must not be zero. The
// error is errdefs' Conflict when another container has a port already.
func (m *Manager) Publish(ctx context.Context, containerID string, ports []Port) error {
	return errTODO
}

// Ports returns what Publish was given.
func (m *Manager) Ports(containerID string) []Port { return nil }

// Address is where the machine itself reaches a container: its address on the
// network with the default route. ok is false when it has none (host, none, not
// running).
func (m *Manager) Address(containerID string) (addr netip.Addr, ok bool) { return netip.Addr{}, false }

// Stats reads the counters of a container's interfaces, sorted by name.
func (m *Manager) Stats(containerID string) ([]Stats, error) { return nil, errTODO }
