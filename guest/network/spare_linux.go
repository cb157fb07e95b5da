package network

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/berthvm/berth/guest/network/internal/link"
)

// spare is a namespace that was made ahead of time, with an endpoint on the
// default bridge: most containers are of that kind, and to make one takes the
// kernel longer than all else that a start needs of networks. The first Attach
// takes the endpoint or, on another network, exchanges the namespace for a plain
// one. Nothing of a spare is written down: it dies with the process.
type spare struct {
	ns *link.NS
	ep Endpoint
}

// Prepare makes docker0, the firewall's table and a spare container's namespace,
// so that the first container need not wait for them. It is meant for the
// background once the engine answers; without it they are made when they are
// first needed.
func (m *Manager) Prepare(ctx context.Context) error {
	n, err := m.find(Bridge)
	if err != nil {
		return err
	}
	if _, err := m.ensureBridge(n); err != nil {
		return err
	}
	return m.refill()
}

// refill makes the spare if there is none, and docker0 is in use.
func (m *Manager) refill() error {
	n, err := m.find(Bridge)
	if err != nil {
		return err
	}
	n.dev.Lock()
	made := n.index != 0
	n.dev.Unlock()
	m.mu.RLock()
	need := made && m.spare == nil && !m.closed
	m.mu.RUnlock()
	if !need {
		return nil
	}
	sp, err := m.makeSpare(n)
	if err != nil {
		return err
	}
	m.keepSpare(sp)
	return nil
}

func (m *Manager) makeSpare(n *network) (*spare, error) {
	ns, err := link.NewNS()
	if err != nil {
		return nil, err
	}
	ep := Endpoint{ID: newID(), NetworkID: n.def.ID, NetworkName: n.def.Name, Interface: nextInterface(nil, n.def.ifPrefix())}
	ep.Device = "veth" + ep.ID[:7]
	m.mu.Lock()
	err = n.allocate(&ep, AttachRequest{})
	m.mu.Unlock()
	if err != nil {
		ns.Close()
		return nil, err
	}
	if err = ep.setMAC(n.def.Driver, ""); err == nil {
		err = m.connect(n, ep, ns)
	}
	if err == nil {
		err = setRoutes(ns, [2]route{}, defaultRoutes([]Endpoint{ep}))
	}
	if err != nil {
		m.discardSpare(&spare{ns, ep})
		return nil, err
	}
	return &spare{ns, ep}, nil
}

// keepSpare makes sp the spare, unless there is one.
func (m *Manager) keepSpare(sp *spare) {
	m.mu.Lock()
	if m.spare == nil && !m.closed {
		m.spare, sp = sp, nil
	}
	m.mu.Unlock()
	if sp != nil {
		m.discardSpare(sp)
	}
}

func (m *Manager) discardSpare(sp *spare) {
	m.drain(sp.ep)
	sp.ns.Close()
}

// NewNS makes a network namespace with its loopback up and pins it; it survives
// the engine. The path is what Attach and a runtime spec take. Until the first
// Attach nothing may enter or open it: it can be exchanged for another. A second
// call for the same id returns the same path.
func (m *Manager) NewNS(ctx context.Context, id string) (path string, err error) {
	path, err = m.nsPath(id)
	if err != nil {
		return "", err
	}
	if link.Pinned(path) {
		return path, nil
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return "", errClosed
	}
	sp := m.spare
	if sp != nil {
		m.spare, m.pending[id] = nil, sp
	}
	m.mu.Unlock()
	if sp == nil {
		return path, pinNew(path)
	}
	if err := sp.ns.Pin(path); err != nil {
		if sp := m.claim(id); sp != nil {
			m.keepSpare(sp)
		}
		return "", fmt.Errorf("cannot keep the network namespace: %w", err)
	}
	return path, nil
}

// pinNew makes a plain namespace and pins it.
func pinNew(path string) error {
	ns, err := link.NewNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.Pin(path); err != nil {
		return fmt.Errorf("cannot keep the network namespace: %w", err)
	}
	return nil
}

// spares are those that no container has an endpoint of. Called with mu held.
func (m *Manager) spares() []*spare {
	out := slices.Collect(maps.Values(m.pending))
	if m.spare != nil {
		out = append(out, m.spare)
	}
	return out
}

// claim takes the spare that NewNS gave a container, if it is still unused.
func (m *Manager) claim(id string) *spare {
	m.mu.Lock()
	defer m.mu.Unlock()
	sp := m.pending[id]
	delete(m.pending, id)
	return sp
}

// takeSpare makes a container's first endpoint of what NewNS gave it. ok is false
// when the endpoint must be made; the namespace is a plain one then.
func (m *Manager) takeSpare(n *network, sb *sandbox, req AttachRequest) (ep Endpoint, ok bool, err error) {
	path, err := m.nsPath(req.ContainerID)
	if err != nil {
		return Endpoint{}, false, err
	}
	if req.NetNS != path {
		return Endpoint{}, false, nil
	}
	sp := m.claim(req.ContainerID)
	if sp == nil {
		return Endpoint{}, false, nil
	}
	plain := req.MAC == "" && len(req.LinkLocal) == 0 && req.DriverOpts[OptionIfname] == "" && req.DriverOpts[OptionSysctls] == "" && !req.NoIPv6
	if n.def.ID == sp.ep.NetworkID && plain && checkAttach(n.def, sb.endpoints, req) == nil {
		m.mu.Lock()
		n.using++
		m.mu.Unlock()
		sb.routes = defaultRoutes([]Endpoint{sp.ep})
		sp.ns.Close() // it is pinned
		return sp.ep.of(req), true, nil
	}
	if err := link.Unpin(path); err != nil {
		m.discardSpare(sp)
		return Endpoint{}, false, err
	}
	m.keepSpare(sp)
	return Endpoint{}, false, pinNew(path)
}

// RemoveNS undoes NewNS; the kernel frees the namespace when its last process
// has gone. It is no error if there is none.
func (m *Manager) RemoveNS(ctx context.Context, id string) error {
	path, err := m.nsPath(id)
	if err != nil {
		return err
	}
	if sp := m.claim(id); sp != nil {
		m.discardSpare(sp)
	}
	return link.Unpin(path)
}
