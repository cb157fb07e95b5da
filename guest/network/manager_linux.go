package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/ident"
	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
)

// Manager owns the machine's networks.
//
// Locks, in this order: sandbox.op (one change to a container at a time),
// network.dev (the bridge's interface), parents (the interfaces that macvlan and
// ipvlan networks sit on), mu (everything in memory). mu is never held over a call
// to the kernel.
type Manager struct {
	opts Options
	log  *slog.Logger
	root *link.Conn // in the machine's own namespace

	parents sync.Mutex

	base sync.Mutex // makes fw, once
	fw   *firewall.Firewall

	mu        sync.RWMutex
	left      *sync.Cond          // of mu: a network's leave has become less
	networks  map[string]*network // by ID
	sandboxes map[string]*sandbox // by container ID
	site      netip.Prefix        // where IPv6 subnets come from; zero until it is needed
	spare     *spare              // made ahead of time
	pending   map[string]*spare   // handed out by NewNS and not attached yet, by container ID
	closed    bool

	work sync.WaitGroup // background work; Add only with mu held and closed unset
}

// Open reads the state and makes ready. It changes nothing in the kernel.
func Open(ctx context.Context, opts Options) (*Manager, error) {
	opts.setDefaults()
	for _, dir := range []string{opts.StateDir, opts.RunDir, opts.NetNSDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	st, err := readState(opts.statePath())
	if err != nil {
		return nil, fmt.Errorf("cannot read the networks: %w", err)
	}
	m := &Manager{opts: opts, log: opts.Log, site: st.Site, networks: map[string]*network{}, sandboxes: map[string]*sandbox{}, pending: map[string]*spare{}}
	m.left = sync.NewCond(&m.mu)
	for _, n := range predefined(opts) {
		n.Created = time.Now().UTC()
		if err := m.addNetwork(n); err != nil {
			return nil, err
		}
	}
	for _, n := range st.Networks {
		if err := m.addNetwork(n); err != nil {
			return nil, fmt.Errorf("cannot use the network %s: %w", n.Name, err)
		}
	}
	files, err := readSandboxes(opts.RunDir, func(path string, err error) {
		m.log.Warn("a container's network state is damaged and ignored", "file", path, "error", err)
	})
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		m.adopt(f)
	}
	if m.root, err = link.Dial(); err != nil {
		return nil, err
	}
	return m, nil
}

func (o *Options) setDefaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.RunDir, "/run/berth/network")
	def(&o.NetNSDir, "/run/berth/netns")
	def(&o.Uplink, "eth0")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if !o.DefaultSubnet.IsValid() {
		o.DefaultSubnet = netip.MustParsePrefix("172.17.0.1/16")
	}
	o.DNS = slices.Clone(o.DNS)
}

// Close stops the DNS servers and frees what this process holds. Networks and
// endpoints stay as they are, for the next Open: containers outlive the engine.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	spares, sandboxes := m.spares(), slices.Collect(maps.Values(m.sandboxes))
	m.spare, m.pending = nil, nil
	m.mu.Unlock()

	m.work.Wait()
	for _, sp := range spares {
		m.discardSpare(sp)
	}
	for _, sb := range sandboxes {
		sb.op.Lock()
		sb.stopDNS()
		sb.stopLoopback()
		sb.op.Unlock()
	}
	m.base.Lock()
	defer m.base.Unlock()
	m.root.Close()
	if m.fw != nil {
		return m.fw.Close()
	}
	return nil
}

// background runs f on a goroutine that Close waits for. It reports whether it
// does: not after Close.
func (m *Manager) background(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Go(f)
	return true
}

var errClosed = errors.New("the network manager is closed")

// firewall returns the rules, making what all bridges need at the first call.
func (m *Manager) firewall() (*firewall.Firewall, error) {
	m.base.Lock()
	defer m.base.Unlock()
	if m.fw != nil {
		return m.fw, nil
	}
	uplink, err := m.uplinkPrefixes()
	if err != nil {
		return nil, err
	}
	var local []netip.Addr
	for _, p := range uplink {
		local = append(local, p.Addr())
	}
	fw, err := firewall.New(firewall.Machine{Local: local, Uplink: m.opts.Uplink, Host: m.opts.Host})
	if err != nil {
		return nil, err
	}
	if err := link.Sysctl("ipv4/ip_forward", "1"); err != nil {
		fw.Close()
		return nil, fmt.Errorf("cannot switch forwarding on: %w", err)
	}
	m.fw = fw
	return fw, nil
}

// uplinkPrefixes are the machine's own addresses, with their prefixes.
func (m *Manager) uplinkPrefixes() ([]netip.Prefix, error) {
	l, err := m.root.ByName(m.opts.Uplink)
	if link.IsNotExist(err) {
		return nil, nil // a machine without a network
	}
	if err != nil {
		return nil, err
	}
	all, err := m.root.Addrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, p := range all[l.Index] {
		if !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	return out, nil
}

func (m *Manager) nsPath(id string) (string, error) {
	if !validID(id) {
		return "", invalid("invalid container ID %q", id)
	}
	return filepath.Join(m.opts.NetNSDir, id), nil
}

// validID guards the file names that are made of IDs.
func validID(id string) bool {
	return id != "" && len(id) <= 128 && id[0] != '.' && ident.Plain(id, "_.-")
}
