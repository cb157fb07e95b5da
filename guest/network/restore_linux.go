package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
)

// Restore takes up the endpoints of the containers that keep reports to run, and
// removes everything else that an earlier Manager left: other containers'
// endpoints, interfaces, namespaces, rules. What is in use is not interrupted.
// It must come before the first Attach. It goes on after an error.
func (m *Manager) Restore(ctx context.Context, keep func(containerID string) bool) error {
	m.mu.Lock()
	var lost []*sandbox
	for id, sb := range m.sandboxes {
		if !keep(id) || (sb.netns != "" && !link.Pinned(sb.netns)) {
			lost = append(lost, sb)
			delete(m.sandboxes, id)
		}
	}
	for _, sb := range lost {
		for _, ep := range sb.endpoints {
			if n := m.networks[ep.NetworkID]; n != nil {
				n.using--
				n.release(ep)
			}
		}
		sb.endpoints, sb.ports, sb.forwards, sb.gone = nil, nil, nil, true
	}
	m.mu.Unlock()

	return errors.Join(
		m.sweepRecords(),
		m.sweepNamespaces(keep),
		m.sweepLinks(),
		m.restoreRules(),
		m.finishDetaching(),
		m.restoreDNS(),
	)
}

// finishDetaching takes endpoints whose interface is gone off their containers: an
// earlier Manager had begun to.
func (m *Manager) finishDetaching() error {
	links, err := m.root.List()
	if err != nil {
		return fmt.Errorf("cannot list interfaces: %w", err)
	}
	there := map[string]bool{"": true} // endpoints without an end in the machine
	for _, l := range links {
		there[l.Name] = true
	}
	var half []*sandbox
	m.mu.Lock()
	for _, sb := range m.sandboxes {
		var kept []Endpoint
		for _, ep := range sb.endpoints {
			n := m.networks[ep.NetworkID]
			switch {
			case there[ep.Device]:
				kept = append(kept, ep)
			case n != nil:
				n.using--
				n.release(ep)
			}
		}
		if len(kept) < len(sb.endpoints) {
			sb.endpoints = kept
			half = append(half, sb)
		}
	}
	m.mu.Unlock()
	var errs []error
	for _, sb := range half {
		m.log.Warn("a container's way off a network is finished", "container", sb.id)
		sb.op.Lock()
		errs = append(errs, m.settle(sb))
		m.unlock(sb)
	}
	return errors.Join(errs...)
}

// sweepRecords removes the records of containers that are not there, the
// unreadable ones included.
func (m *Manager) sweepRecords() error {
	entries, err := os.ReadDir(m.opts.RunDir)
	if err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && m.sandboxes[id] != nil {
			continue
		}
		if err := os.Remove(filepath.Join(m.opts.RunDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) sweepNamespaces(keep func(string) bool) error {
	entries, err := os.ReadDir(m.opts.NetNSDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !keep(e.Name()) {
			errs = append(errs, link.Unpin(filepath.Join(m.opts.NetNSDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// sweepLinks adopts the bridges of networks that exist and removes all other
// interfaces of ours that no endpoint has and no network sits on.
func (m *Manager) sweepLinks() error {
	links, err := m.root.List()
	if err != nil {
		return fmt.Errorf("cannot list interfaces: %w", err)
	}
	bridges := map[string]*network{}
	used := map[string]bool{}
	m.mu.RLock()
	for _, n := range m.networks {
		if n.def.Device != "" {
			bridges[n.def.Device] = n
		}
		used[n.def.Parent] = true
	}
	for _, sb := range m.sandboxes {
		for _, ep := range sb.endpoints {
			used[ep.Device] = true
		}
	}
	m.mu.RUnlock()
	var errs []error
	for _, l := range links {
		if l.Group != link.Group {
			continue
		}
		if n := bridges[l.Name]; n != nil && l.Type == "bridge" {
			n.dev.Lock()
			n.index = l.Index
			n.dev.Unlock()
		} else if !used[l.Name] {
			errs = append(errs, m.root.Delete(l.Name))
		}
	}
	return errors.Join(errs...)
}

// restoreRules replaces the table by what is in use now.
func (m *Manager) restoreRules() error {
	m.mu.RLock()
	networks := slices.Collect(maps.Values(m.networks))
	var fwds []firewall.Forward
	for _, sb := range m.sandboxes {
		fwds = append(fwds, sb.forwards...)
	}
	m.mu.RUnlock()
	var bridges []firewall.Bridge
	for _, n := range networks {
		n.dev.Lock()
		if n.index != 0 {
			bridges = append(bridges, n.rules())
		}
		n.dev.Unlock()
	}
	if len(bridges) == 0 {
		return nil // after a boot: there is no table
	}
	fw, err := m.firewall()
	if err != nil {
		return err
	}
	return fw.Reset(bridges, fwds)
}

func (m *Manager) restoreDNS() error {
	m.mu.RLock()
	sandboxes := slices.Collect(maps.Values(m.sandboxes))
	m.mu.RUnlock()
	var errs []error
	for _, sb := range sandboxes {
		sb.op.Lock()
		errs = append(errs, m.settleDNS(sb))
		sb.op.Unlock()
	}
	return errors.Join(errs...)
}
