package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
	"github.com/berthvm/berth/guest/network/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	addr = netip.MustParseAddr
	pfx  = netip.MustParsePrefix
	ctx  = context.Background()
)

// machine is a Manager in a namespace with an uplink to an outside.
type machine struct {
	*Manager
	t       *testing.T
	opts    Options
	outside *link.NS // 192.0.2.1; the machine is 192.0.2.2
	log     bytes.Buffer
}

// newMachine makes one. When the test ends everything must be gone: interfaces,
// rules, namespaces, records and goroutines.
func newMachine(t *testing.T) *machine {
	nstest.Require(t)
	dir := t.TempDir()
	m := &machine{t: t, opts: Options{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), NetNSDir: filepath.Join(dir, "netns"),
	}}
	m.opts.Log = slog.New(slog.NewTextHandler(&m.log, nil))
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	m.makeOutside()
	m.open()
	t.Cleanup(m.checkClean)
	return m
}

func (m *machine) makeOutside() {
	m.t.Helper()
	root, err := link.Dial()
	m.must(err)
	defer root.Close()
	m.outside, err = link.NewNS()
	m.must(err)
	m.t.Cleanup(func() { m.outside.Close() })
	m.must(root.AddBridge(link.BridgeSpec{Name: "eth0", MTU: 1500}))
	up, err := root.ByName("eth0")
	m.must(err)
	m.must(root.AddAddr(up.Index, pfx("192.0.2.2/24")))
	m.must(root.SetUp(up.Index))
	m.must(root.AddVeth(link.VethSpec{Name: "cable", Bridge: up.Index, PeerName: "eth0", PeerMAC: link.MAC(addr("192.0.2.1")), PeerNS: m.outside, MTU: 1500}))
	m.must(inside(m.outside, Endpoint{Interface: "eth0", IPv4: pfx("192.0.2.1/24")}))
	for _, name := range []string{"eth0", "cable"} { // they are not the Manager's
		l, err := netlink.LinkByName(name)
		m.must(err)
		m.must(netlink.LinkSetGroup(l, 0))
	}
	m.t.Cleanup(func() {
		root, err := link.Dial()
		m.must(err)
		defer root.Close()
		m.must(root.Delete("cable"))
		m.must(root.Delete("eth0"))
	})
}

func (m *machine) open() {
	m.t.Helper()
	var err error
	m.Manager, err = Open(ctx, m.opts)
	m.must(err)
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// checkClean ends the test: nothing may be left when a last Restore that keeps
// nothing has run.
func (m *machine) checkClean() {
	t := m.t
	m.Settle()
	for _, n := range m.List() {
		if n.UserDefined() {
			if err := m.Remove(ctx, n.ID); err != nil {
				t.Errorf("remove %s: %v", n.Name, err)
			}
		}
	}
	m.must(m.Close())
	if left := m.links(); len(left) > 0 && !slices.Equal(left, []string{"docker0"}) {
		t.Errorf("interfaces are left: %v", left)
	}
	for _, dir := range []string{m.opts.RunDir, m.opts.NetNSDir} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if elems := m.elements(); !slices.Equal(elems, []string{"docker0"}) && len(elems) != 0 {
		t.Errorf("bridges left in the firewall: %v", elems)
	}
	// docker0 and the table live as long as the machine.
	root, err := link.Dial()
	m.must(err)
	defer root.Close()
	m.must(root.Delete("docker0"))
	c, err := nftables.New()
	m.must(err)
	tables, err := c.ListTables()
	m.must(err)
	for _, tab := range tables {
		c.DelTable(tab)
	}
	m.must(c.Flush())
	if strings.Contains(m.log.String(), "level=ERROR") {
		t.Errorf("log:\n%s", m.log.String())
	}
}

// links names the interfaces that are ours.
func (m *machine) links() []string {
	root, err := link.Dial()
	m.must(err)
	defer root.Close()
	all, err := root.List()
	m.must(err)
	var out []string
	for _, l := range all {
		if l.Group == link.Group {
			out = append(out, l.Name)
		}
	}
	slices.Sort(out)
	return out
}

// elements names the bridges in the firewall.
func (m *machine) elements() []string {
	c, err := nftables.New()
	m.must(err)
	t := &nftables.Table{Name: firewall.TableName, Family: nftables.TableFamilyINet}
	s, err := c.GetSetByName(t, "bridges")
	if err != nil {
		return nil
	}
	els, err := c.GetSetElements(s)
	m.must(err)
	var out []string
	for _, e := range els {
		out = append(out, string(bytes.TrimRight(e.Key, "\x00")))
	}
	slices.Sort(out)
	return out
}

// container starts a container with networks; it is released with the test.
type container struct {
	m    *machine
	id   string
	path string
	ns   *link.NS
}

func (m *machine) container(name string, networks ...string) *container {
	m.t.Helper()
	c := &container{m: m, id: name + "-0123456789abcdef"}
	var err error
	c.path, err = m.NewNS(ctx, c.id)
	m.must(err)
	m.t.Cleanup(func() { c.release() })
	for _, n := range networks {
		c.attach(AttachRequest{Network: n})
	}
	return c
}

func (c *container) release() {
	if c.ns != nil {
		c.ns.Close()
		c.ns = nil
	}
	c.m.must(c.m.Release(ctx, c.id))
}

func (c *container) attach(req AttachRequest) Endpoint {
	c.m.t.Helper()
	name, _, _ := strings.Cut(c.id, "-")
	req.ContainerID, req.ContainerName, req.NetNS = c.id, name, c.path
	req.Names = append([]string{name}, req.Names...)
	ep, err := c.m.Attach(ctx, req)
	c.m.must(err)
	if c.ns == nil { // before the first Attach it may be exchanged
		c.ns, err = link.OpenNS(c.path)
		c.m.must(err)
	}
	return ep
}

// serve answers each TCP connection and datagram with the peer's address and
// what it sent.
func serve(t *testing.T, ns *link.NS, port int) {
	t.Helper()
	var ln net.Listener
	var pc net.PacketConn
	do(t, ns, func() (err error) {
		if ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		pc, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { ln.Close(); pc.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s", c.RemoteAddr())
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo([]byte(from.String()), from)
		}
	}()
}

func do(t *testing.T, ns *link.NS, f func() error) {
	t.Helper()
	err := f
	var e error
	if ns == nil {
		e = err()
	} else {
		e = ns.Do(err)
	}
	if e != nil {
		t.Fatal(e)
	}
}

// dial asks a server of serve's who it was that asked. Without an answer it
// returns an error.
func dial(ns *link.NS, network, to string) (from string, err error) {
	var c net.Conn
	open := func() (err error) {
		// Without a context's deadline the dial stays on this thread.
		d := net.Dialer{}
		if network == "udp" {
			c, err = d.Dial(network, to)
			return err
		}
		c, err = dialHere(to)
		return err
	}
	if ns == nil {
		err = open()
	} else {
		err = ns.Do(open)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if network == "udp" {
		c.Write([]byte("x"))
		b := make([]byte, 100)
		n, err := c.Read(b)
		host, _, _ := net.SplitHostPort(string(b[:n]))
		return host, err
	}
	b, err := io.ReadAll(c)
	host, _, _ := net.SplitHostPort(string(b))
	return host, err
}

func dialHere(to string) (net.Conn, error) {
	d := net.Dialer{Timeout: 400 * time.Millisecond, FallbackDelay: -1}
	return d.Dial("tcp", to)
}

// TestWithoutIPv6: a container that switches IPv6 off has no such address on a network
// with IPv6, and others are told of none.
func TestWithoutIPv6(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "six", IPv6: true})
	m.must(err)
	with := m.container("with", "six")
	for name, req := range map[string]AttachRequest{
		"all":       {Network: "six", NoIPv6: true},
		"interface": {Network: "six", DriverOpts: map[string]string{OptionSysctls: "net.ipv6.conf.IFNAME.disable_ipv6=1"}},
	} {
		if ep := m.container(name).attach(req); ep.IPv6.IsValid() || ep.Gateway6.IsValid() || !ep.IPv4.IsValid() {
			t.Errorf("%s: %+v", name, ep)
		}
		if r, err := ask(with.ns, "udp", name, dns.TypeAAAA); err != nil || len(r.Answer) > 0 {
			t.Errorf("AAAA of %s: %v, %v", name, r, err)
		}
	}
}

// TestDetachFromTheWayOut: a container leaves a network though the one that is left
// cannot lead outside.
func TestDetachFromTheWayOut(t *testing.T) {
	m := newMachine(t)
	for _, name := range []string{"one", "two"} {
		_, err := m.Create(ctx, Config{Name: name})
		m.must(err)
	}
	a := m.container("a", "one", "two")
	do(t, a.ns, func() error {
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
	m.must(m.Detach(ctx, a.id, "one"))
	if left := m.Endpoints(a.id); len(left) != 1 {
		t.Errorf("endpoints: %+v", left)
	}
	a.attach(AttachRequest{Network: "one"})
}

// TestAroundTheUplink: from a network whose subnet lies around the uplink's, what is
// there is reached, and so is the container.
func TestAroundTheUplink(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "wide", Subnets: []Subnet{{Subnet: pfx("192.0.0.0/16")}}})
	m.must(err)
	a := m.container("a", "wide")
	serve(t, a.ns, 80)
	serve(t, m.outside, 80)
	m.must(m.Publish(ctx, a.id, []Port{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}))
	for _, tc := range []struct {
		what     string
		ns       *link.NS
		to, from string
	}{
		{"container to the uplink's neighbours", a.ns, "192.0.2.1:80", "192.0.2.2"},
		{"machine to container", nil, "192.0.0.2:80", "192.0.0.1"},
		{"the uplink's neighbours to a published port", m.outside, "192.0.2.2:8080", "192.0.0.1"}, // of the container's subnet, as it were
	} {
		if from, err := dial(tc.ns, "tcp", tc.to); from != tc.from {
			t.Errorf("%s: answered %q, %v; want %q", tc.what, from, err, tc.from)
		}
	}
}

func TestDefaultBridge(t *testing.T) {
	m := newMachine(t)
	a := m.container("a")
	epA := a.attach(AttachRequest{Network: Bridge})
	if epA.IPv4 != pfx("172.17.0.2/16") || epA.Gateway4 != addr("172.17.0.1") || epA.MAC != "02:42:ac:11:00:02" || epA.Interface != "eth0" {
		t.Errorf("endpoint: %+v", epA)
	}
	b := m.container("b", Bridge)
	serve(t, a.ns, 80)
	serve(t, m.outside, 80)
	serve(t, nil, 81)
	for _, tc := range []struct {
		what string
		ns   *link.NS
		to   string
		from string // "" for no way
	}{
		{"container to container", b.ns, "172.17.0.2:80", "172.17.0.3"},
		{"container to itself", a.ns, "172.17.0.2:80", "172.17.0.2"},
		{"machine to container", nil, "172.17.0.2:80", "172.17.0.1"},
		{"container to the world, masqueraded", b.ns, "192.0.2.1:80", "192.0.2.2"},
		{"container to the machine", b.ns, "172.17.0.1:81", "172.17.0.3"},
		{"the world to a container", m.outside, "172.17.0.2:80", ""},
	} {
		if tc.what == "the world to a container" {
			c, err := m.outside.Dial()
			m.must(err)
			l, err := c.ByName("eth0")
			m.must(err)
			m.must(c.SetDefault(l.Index, false, addr("192.0.2.2"), false))
			c.Close()
		}
		for _, network := range []string{"tcp", "udp"} {
			from, err := dial(tc.ns, network, tc.to)
			if from != tc.from {
				t.Errorf("%s by %s: answered %q, %v; want %q", tc.what, network, from, err, tc.from)
			}
		}
	}
	got := m.Endpoints(a.id)
	if len(got) != 1 || got[0].ID != epA.ID {
		t.Errorf("Endpoints: %+v", got)
	}
	if on, err := m.NetworkEndpoints(Bridge); err != nil || len(on) != 2 || on[0].ContainerName != "a" {
		t.Errorf("NetworkEndpoints: %+v, %v", on, err)
	}
	st, err := m.Stats(a.id)
	if err != nil || len(st) != 1 || st[0].Interface != "eth0" || st[0].RxBytes == 0 || st[0].TxPackets == 0 {
		t.Errorf("Stats: %+v, %v", st, err)
	}
	if ad, ok := m.Address(a.id); !ok || ad != addr("172.17.0.2") {
		t.Errorf("Address: %v", ad)
	}
	// The lowest address is used again.
	a.release()
	m.Settle()
	if ep := m.container("c").attach(AttachRequest{Network: "bridge"}); ep.IPv4 != pfx("172.17.0.2/16") {
		t.Errorf("third container got %v", ep.IPv4)
	}
}

// The first frame must not be lost: when Attach returns, the kernel has finished
// with both ends and, for the first container, with the bridge.
func TestAttachedMeansWorking(t *testing.T) {
	m := newMachine(t)
	for i := range 20 {
		c := m.container(fmt.Sprint("c", i))
		ep := c.attach(AttachRequest{Network: Bridge})
		state := func() map[string]netlink.LinkOperState {
			links, err := netlink.LinkList() // to ask for one by its name would mend it
			m.must(err)
			got := map[string]netlink.LinkOperState{}
			for _, l := range links {
				got[l.Attrs().Name] = l.Attrs().OperState
			}
			return got
		}
		here := state()
		var there map[string]netlink.LinkOperState
		do(t, c.ns, func() error { there = state(); return nil })
		if here["docker0"] != netlink.OperUp || here[ep.Device] != netlink.OperUp || there["eth0"] != netlink.OperUp {
			t.Fatalf("container %d: docker0 is %v, its port %v, the container's end %v", i, here["docker0"], here[ep.Device], there["eth0"])
		}
	}
}

func TestLoopbackOfTheMachineIsClosed(t *testing.T) {
	m := newMachine(t)
	a := m.container("a", Bridge)
	serve(t, nil, 82)
	c, err := a.ns.Dial()
	m.must(err)
	defer c.Close()
	// Route 127.0.0.2 to the machine, as a container with NET_ADMIN might.
	do(t, a.ns, func() error { return link.Sysctl("ipv4/conf/all/route_localnet", "1") })
	l, err := c.ByName("lo")
	m.must(err)
	eth, err := c.ByName("eth0")
	m.must(err)
	_ = l
	m.must(c.AddAddr(eth.Index, pfx("127.0.1.1/24")))
	if from, err := dial(a.ns, "udp", "127.0.1.5:82"); err == nil {
		t.Errorf("the machine's loopback answered a container: %s", from)
	}
}

func TestUserDefinedNetworks(t *testing.T) {
	m := newMachine(t)
	one, err := m.Create(ctx, Config{Name: "one", Labels: map[string]string{"k": "v"}})
	m.must(err)
	if one.Subnets[0].Subnet != pfx("172.18.0.0/16") || one.Subnets[0].Gateway != addr("172.18.0.1") || !strings.HasPrefix(one.Device, "br-") {
		t.Errorf("one: %+v", one)
	}
	_, err = m.Create(ctx, Config{Name: "inside", Internal: true, Subnets: []Subnet{{Subnet: pfx("10.9.0.0/24"), Range: pfx("10.9.0.128/25"), Gateway: addr("10.9.0.254")}}})
	m.must(err)
	_, err = m.Create(ctx, Config{Name: "apart", Options: map[string]string{OptionICC: "false", OptionBridgeName: "br-apart", OptionMTU: "1400", OptionIfPrefix: "net"}})
	m.must(err)
	if len(m.links()) != 0 {
		t.Error("interfaces exist before a container needs them")
	}
	a := m.container("a", "one")
	b := m.container("b", "one")
	x := m.container("x", Bridge)
	i1, i2 := m.container("i"), m.container("j", "inside")
	if ep := i1.attach(AttachRequest{Network: "inside"}); ep.IPv4 != pfx("10.9.0.129/24") && ep.IPv4 != pfx("10.9.0.128/24") || ep.Gateway4.IsValid() {
		t.Errorf("internal endpoint: %+v", ep)
	}
	p1, p2 := m.container("p"), m.container("q", "apart")
	if ep := p1.attach(AttachRequest{Network: "apart"}); ep.Interface != "net0" {
		t.Errorf("interface %s, want net0", ep.Interface)
	}
	for _, ns := range []*link.NS{a.ns, x.ns, i1.ns, p1.ns, m.outside} {
		serve(t, ns, 80)
	}
	serve(t, nil, 81)
	to := func(c *container) string {
		ad, _ := m.Address(c.id)
		return ad.String() + ":80"
	}
	inside := func(c *container) string { // the machine has no business there
		if ad, ok := m.Address(c.id); ok {
			t.Errorf("the address in an internal network is %v", ad)
		}
		return m.Endpoints(c.id)[0].IPv4.Addr().String() + ":80"
	}
	for _, tc := range []struct {
		what string
		from *container
		to   string
		ok   bool
	}{
		{"same network", b, to(a), true},
		{"out of a user-defined network", b, "192.0.2.1:80", true},
		{"to the default bridge", b, to(x), false},
		{"from the default bridge", x, to(a), false},
		{"within an internal network", i2, inside(i1), true},
		{"out of an internal network", i2, "192.0.2.1:80", false},
		{"from an internal network to another", i2, to(a), false},
		{"into an internal network", b, inside(i1), false},
		{"without icc", p2, to(p1), false},
		{"without icc, to the machine", p2, "172.19.0.1:81", true},
		{"without icc, to the world", p2, "192.0.2.1:80", true},
	} {
		from, err := dial(tc.from.ns, "tcp", tc.to)
		if (err == nil) != tc.ok {
			t.Errorf("%s (%s): answered %q, %v; want an answer: %v", tc.what, tc.to, from, err, tc.ok)
		}
	}
	if c, err := p1.ns.Dial(); err == nil {
		if l, err := c.ByName("net0"); err != nil || l.MTU != 1400 {
			t.Errorf("net0: %+v, %v", l, err)
		}
		c.Close()
	}
	if err := m.Remove(ctx, "one"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), `network one has active endpoints (name:"a" id:"`) {
		t.Errorf("removing a network in use: %v", err)
	}
}

func TestConnectAndDisconnect(t *testing.T) {
	m := newMachine(t)
	for _, n := range []Config{{Name: "zeta"}, {Name: "alpha"}, {Name: "closed", Internal: true}} {
		_, err := m.Create(ctx, n)
		m.must(err)
	}
	a := m.container("a", "closed")
	route := func() string {
		from, _ := dial(a.ns, "udp", "192.0.2.1:80")
		c, err := a.ns.Dial()
		m.must(err)
		defer c.Close()
		_ = from
		var local string
		a.ns.Do(func() error {
			if c, err := net.Dial("udp", "192.0.2.1:80"); err == nil {
				local, _, _ = net.SplitHostPort(c.LocalAddr().String())
				c.Close()
			}
			return nil
		})
		return local
	}
	if r := route(); r != "" {
		t.Errorf("an internal network has a default route, from %s", r)
	}
	z := a.attach(AttachRequest{Network: "zeta"})
	if z.Interface != "eth1" || route() != z.IPv4.Addr().String() {
		t.Errorf("zeta: %+v, route from %s", z, route())
	}
	al := a.attach(AttachRequest{Network: "alpha"})
	if route() != al.IPv4.Addr().String() || m.Endpoints(a.id)[0].ID != al.ID {
		t.Errorf("alpha comes before zeta, route from %s", route())
	}
	if _, err := m.Attach(ctx, AttachRequest{ContainerID: a.id, ContainerName: "a", Network: "alpha", NetNS: a.path}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("second attach to the same network: %v", err)
	}
	m.must(m.Detach(ctx, a.id, "alpha"))
	if route() != z.IPv4.Addr().String() {
		t.Errorf("after disconnect the route is from %s", route())
	}
	if err := m.Detach(ctx, a.id, "alpha"); !errdefs.IsNotFound(err) {
		t.Errorf("second detach: %v", err)
	}
	// A default route of the container's own is not overruled.
	own := m.container("own", "closed")
	c, err := own.ns.Dial()
	m.must(err)
	defer c.Close()
	l, err := c.ByName("eth0")
	m.must(err)
	m.must(c.SetDefault(l.Index, false, addr("172.20.0.1"), false))
	if _, err := m.Attach(ctx, AttachRequest{ContainerID: own.id, ContainerName: "own", Network: "zeta", NetNS: own.path}); err == nil || !strings.Contains(err.Error(), "failed to set gateway: file exists") {
		t.Errorf("attach beside a route of the container's: %v", err)
	}
	if _, err := c.ByName("eth1"); !link.IsNotExist(err) || len(m.Endpoints(own.id)) != 1 {
		t.Errorf("the failed attach left something: %v, %v", err, m.Endpoints(own.id))
	}
	m.must(c.DeleteDefault(false))
	own.attach(AttachRequest{Network: "zeta"})
	b := m.container("b")
	b.attach(AttachRequest{Network: "alpha"})
	p := b.attach(AttachRequest{Network: "zeta", GatewayPriority: 5})
	if m.Endpoints(b.id)[0].ID != p.ID {
		t.Error("the gateway's priority is not heeded")
	}
}

func TestStaticAddresses(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "n", Subnets: []Subnet{{Subnet: pfx("10.8.0.0/29"), Aux: map[string]netip.Addr{"x": addr("10.8.0.5")}}}})
	m.must(err)
	a := m.container("a")
	if ep := a.attach(AttachRequest{Network: "n", IPv4: addr("10.8.0.3"), MAC: "02:00:00:00:00:09"}); ep.IPv4 != pfx("10.8.0.3/29") || ep.MAC != "02:00:00:00:00:09" {
		t.Errorf("%+v", ep)
	}
	b := m.container("b")
	for _, tc := range []struct {
		req  AttachRequest
		want func(error) bool
	}{
		{AttachRequest{Network: "n", IPv4: addr("10.8.0.3")}, errdefs.IsPermissionDenied},
		{AttachRequest{Network: "n", IPv4: addr("10.8.0.5")}, errdefs.IsPermissionDenied},
		{AttachRequest{Network: "n", IPv4: addr("10.8.1.3")}, errdefs.IsInvalidArgument},
		{AttachRequest{Network: "n", IPv6: addr("fd00::3")}, errdefs.IsInvalidArgument},
		{AttachRequest{Network: "n", MAC: "nonsense"}, errdefs.IsInvalidArgument},
		{AttachRequest{Network: "n", MAC: "01:00:00:00:00:01"}, errdefs.IsInvalidArgument},
		{AttachRequest{Network: Bridge, IPv4: addr("172.17.0.9")}, errdefs.IsInvalidArgument},
		{AttachRequest{Network: "nowhere"}, errdefs.IsNotFound},
	} {
		tc.req.ContainerID, tc.req.NetNS = b.id, b.path
		if _, err := m.Attach(ctx, tc.req); !tc.want(err) {
			t.Errorf("%+v: %v", tc.req, err)
		}
	}
	// .1 gateway, .3 a, .5 aux: .2, .4, .6 are left.
	for i, want := range []string{"10.8.0.2/29", "10.8.0.4/29", "10.8.0.6/29"} {
		if ep := m.container(fmt.Sprintf("c%d", i)).attach(AttachRequest{Network: "n"}); ep.IPv4 != pfx(want) {
			t.Errorf("got %v, want %s", ep.IPv4, want)
		}
	}
	if _, err := m.Attach(ctx, AttachRequest{ContainerID: b.id, NetNS: b.path, Network: "n"}); !errdefs.IsResourceExhausted(err) || !strings.HasPrefix(err.Error(), "no available IPv4 addresses on this network's address pools: n (") {
		t.Errorf("a full network: %v", err)
	}
	if len(m.Endpoints(b.id)) != 0 {
		t.Error("failed attaches left endpoints")
	}
	// What a container had is there for the next at once, static or not, though
	// the kernel takes its time to give it back.
	a.release()
	if u, err := m.Usage("n"); err != nil || u[pfx("10.8.0.0/29")] != (Usage{InUse: 7, Available: 1}) {
		t.Errorf("after a release: %+v, %v", u, err)
	}
	a = m.container("d")
	a.attach(AttachRequest{Network: "n", IPv4: addr("10.8.0.3")})
	a.release()
	m.container("e").attach(AttachRequest{Network: "n", IPv4: addr("10.8.0.3")})
}

func TestIPv6(t *testing.T) {
	m := newMachine(t)
	link.Sysctl("bridge/bridge-nf-call-ip6tables", "0") // as where it is not loaded
	n, err := m.Create(ctx, Config{Name: "six", IPv6: true})
	m.must(err)
	if len(n.Subnets) != 2 || !strings.HasPrefix(n.Subnets[1].Subnet.String(), "fd") || n.Subnets[1].Subnet.Bits() != 64 {
		t.Fatalf("%+v", n.Subnets)
	}
	a, b := m.container("a"), m.container("b", "six")
	ep := a.attach(AttachRequest{Network: "six"})
	serve(t, a.ns, 80)
	to := net.JoinHostPort(ep.IPv6.Addr().String(), "80")
	if from, err := dial(b.ns, "tcp", to); err != nil || from != m.Endpoints(b.id)[0].IPv6.Addr().String() {
		t.Errorf("container to container: %q, %v", from, err)
	}
	m.must(m.Publish(ctx, a.id, []Port{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}))
	gw := net.JoinHostPort(n.Subnets[1].Gateway.String(), "8080")
	if from, err := dial(b.ns, "tcp", gw); err != nil {
		t.Errorf("published port by the gateway: %q, %v", from, err)
	}
	x := m.container("x", Bridge)
	x.ns.Do(func() error {
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); err != nil || string(b) != "1\n" {
			t.Errorf("IPv6 is on in a container without it: %q, %v", b, err)
		}
		return nil
	})
}

// TestLinkLocal: a network's subnet may be link-local, the kernel's own or another.
func TestLinkLocal(t *testing.T) {
	m := newMachine(t)
	for name, subnet := range map[string]string{"own": "fe80::/64", "other": "fe80:1234::/64"} {
		p := netip.MustParsePrefix(subnet)
		_, err := m.Create(ctx, Config{Name: name, IPv6: true, Subnets: []Subnet{{Subnet: p, Gateway: p.Addr().Next()}}})
		m.must(err)
		a, b := m.container(name+"-a"), m.container(name+"-b", name)
		ep := a.attach(AttachRequest{Network: name})
		if !p.Contains(ep.IPv6.Addr()) {
			t.Errorf("%s: %s", subnet, ep.IPv6)
		}
		serve(t, a.ns, 80)
		to := net.JoinHostPort(ep.IPv6.Addr().WithZone("eth0").String(), "80")
		if _, err := dial(b.ns, "tcp", to); err != nil {
			t.Errorf("%s: container to container: %v", subnet, err)
		}
	}
}

func TestPublish(t *testing.T) { testPublish(t, "0") }

// A container may have loaded br_netfilter, which sends bridged packets through
// the rules, too.
func TestPublishWithBridgeNetfilter(t *testing.T) { testPublish(t, "1") }

func testPublish(t *testing.T, brNetfilter string) {
	m := newMachine(t)
	if err := link.Sysctl("bridge/bridge-nf-call-iptables", brNetfilter); err != nil && brNetfilter == "1" {
		t.Skip("the kernel has no br_netfilter: ", err)
	}
	_, err := m.Create(ctx, Config{Name: "one"})
	m.must(err)
	_, err = m.Create(ctx, Config{Name: "closed", Internal: true})
	m.must(err)
	a := m.container("a", Bridge)
	b := m.container("b", Bridge)
	u := m.container("u", "one")
	i := m.container("i", "closed")
	serve(t, a.ns, 80)
	ports := []Port{
		{Proto: "tcp", HostPort: 8080, ContainerPort: 80},
		{Proto: "udp", HostPort: 8080, ContainerPort: 80},
		{Proto: "tcp", HostIP: addr("127.0.0.1"), HostPort: 8081, ContainerPort: 80},
	}
	m.must(m.Publish(ctx, a.id, ports))
	if got := m.Ports(a.id); !slices.Equal(got, ports) {
		t.Errorf("Ports: %v", got)
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		for _, tc := range []struct {
			what string
			ns   *link.NS
			to   string
		}{
			{"loopback", nil, "127.0.0.1:8080"},
			{"own address", nil, "192.0.2.2:8080"},
			{"world", m.outside, "192.0.2.2:8080"},
			{"gateway", b.ns, "172.17.0.1:8080"},
			{"gateway, itself", a.ns, "172.17.0.1:8080"},
			{"gateway, other network", u.ns, "172.18.0.1:8080"},
			{"gateway, internal network", i.ns, "172.19.0.1:8080"},
			{"loopback only", nil, "127.0.0.1:8081"},
			{"loopback only, by gateway", b.ns, "172.17.0.1:8081"},
			{"not ours", b.ns, "192.0.2.1:8080"},
		} {
			for _, network := range []string{"tcp", "udp"} {
				if network == "udp" && strings.HasSuffix(tc.to, "8081") {
					continue
				}
				from, err := dial(tc.ns, network, tc.to)
				if (err == nil) != want[tc.what] {
					t.Errorf("%s: %s by %s: answered %q, %v; want an answer: %v", when, tc.what, network, from, err, want[tc.what])
				}
			}
		}
	}
	all := map[string]bool{"loopback": true, "own address": true, "world": true, "gateway": true, "gateway, itself": true, "gateway, other network": true, "loopback only": true}
	check("published", all)
	for _, p := range []Port{{Proto: "tcp", HostPort: 8080, ContainerPort: 1}, {Proto: "tcp", HostIP: addr("127.0.0.1"), HostPort: 8081, ContainerPort: 1}} {
		if err := m.Publish(ctx, b.id, []Port{p}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "port is already allocated") {
			t.Errorf("a taken port: %v", err)
		}
	}
	for _, p := range []Port{{Proto: "icmp", HostPort: 1, ContainerPort: 1}, {Proto: "tcp", HostPort: 1}} {
		if err := m.Publish(ctx, b.id, []Port{p}); err == nil {
			t.Errorf("%+v was published", p)
		}
	}
	// They follow the container to another network.
	a.attach(AttachRequest{Network: "one", GatewayPriority: 1})
	m.must(m.Detach(ctx, a.id, Bridge))
	check("moved", all)
	m.must(m.Publish(ctx, a.id, nil))
	check("withdrawn", nil)
}

// TestGatewayModes: who reaches containers at their own addresses, and at the
// machine's, is what the modes of their networks say.
func TestGatewayModes(t *testing.T) {
	m := newMachine(t)
	subnets := map[string]string{"nat": "172.30.0.0/24", "trusted": "172.30.1.0/24", "nat-unprotected": "172.30.2.0/24", "routed": "172.30.3.0/24",
		"isolated": "172.30.4.0/24", "routed-internal": "172.30.5.0/24"}
	containers := map[string]*container{}
	for i, name := range slices.Sorted(maps.Keys(subnets)) {
		mode, internal := strings.CutSuffix(name, "-internal")
		mode = strings.Replace(mode, "trusted", "nat", 1)
		cfg := Config{Name: name, Internal: internal || mode == "isolated", IPv6: true,
			Subnets: []Subnet{{Subnet: pfx(subnets[name])}, {Subnet: pfx(fmt.Sprintf("fd00:%d::/64", i))}},
			Options: map[string]string{OptionMode4: mode, OptionMode6: mode}}
		if name == "trusted" {
			cfg.Options[OptionTrusted] = "eth0:eth7:eth0"
		}
		n, err := m.Create(ctx, cfg)
		m.must(err)
		c := m.container(name, name)
		serve(t, c.ns, 80)
		serve(t, c.ns, 81)
		m.must(m.Publish(ctx, c.id, []Port{{Proto: "tcp", HostPort: uint16(8000 + i), ContainerPort: 80}, {Proto: "udp", HostPort: uint16(8000 + i), ContainerPort: 80}}))
		containers[name] = c
		if addrs := m.addrs(n.Device); name == "isolated" && len(addrs) > 0 {
			t.Errorf("the bridge of an isolated network has %v", addrs)
		}
	}
	neighbour := m.container("neighbour", Bridge)
	inner := m.container("inner", "routed-internal")
	do(t, m.outside, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		_, private, _ := net.ParseCIDR("172.16.0.0/12")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: private, Gw: net.ParseIP("192.0.2.2")})
	})
	for name, want := range map[string]struct {
		ways                   Ways
		translated             bool
		world, worldClosed     bool // a published and another port, from the world outside
		neighbour, otherClosed bool // the same from another bridge
	}{
		"nat":             {Ways{true, true, false, false}, true, false, false, false, false},
		"trusted":         {Ways{true, true, false, false}, true, true, false, false, false},
		"nat-unprotected": {Ways{true, true, false, false}, true, true, true, true, true},
		"routed":          {Ways{false, false, true, true}, false, true, false, true, false},
		"isolated":        {},
		"routed-internal": {},
	} {
		c := containers[name]
		if got := m.Ways(c.id); got != want.ways {
			t.Errorf("%s: %+v, want %+v", name, got, want.ways)
		}
		if _, ok := m.Address(c.id); ok != want.translated {
			t.Errorf("%s: an address to publish from: %v, want %v", name, ok, want.translated)
		}
		own := m.Endpoints(c.id)[0].IPv4.Addr().String()
		host := fmt.Sprintf("192.0.2.2:%d", m.Ports(c.id)[0].HostPort)
		for _, try := range []struct {
			from string
			ns   *link.NS
			to   string
			want bool
		}{
			{"the world", m.outside, own + ":80", want.world},
			{"the world", m.outside, own + ":81", want.worldClosed},
			{"the world", m.outside, host, want.translated},
			{"another bridge", neighbour.ns, own + ":80", want.neighbour},
			{"another bridge", neighbour.ns, own + ":81", want.otherClosed},
			{"an internal network", inner.ns, own + ":80", name == "routed-internal"},
		} {
			for _, network := range []string{"tcp", "udp"} {
				if network == "udp" && !try.want {
					continue // it takes long not to be answered
				}
				if from, err := dial(try.ns, network, try.to); (err == nil) != try.want {
					t.Errorf("%s: %s %s from %s: answered %q, %v; want an answer: %v", name, network, try.to, try.from, from, err, try.want)
				}
			}
		}
	}
	// Routed ports are open on every such network, and gone with the container's.
	n := containers["nat"]
	ep := n.attach(AttachRequest{Network: "routed"})
	if got, want := m.Ways(n.id), (Ways{true, true, true, true}); got != want {
		t.Errorf("on two networks: %+v, want %+v", got, want)
	}
	at := ep.IPv4.Addr().String() + ":80"
	if from, err := dial(neighbour.ns, "tcp", at); err != nil {
		t.Errorf("on two networks: %q, %v", from, err)
	}
	// An engine that starts again leaves it so.
	m.Settle()
	m.must(m.Close())
	m.open()
	m.must(m.Restore(ctx, func(string) bool { return true }))
	if from, err := dial(neighbour.ns, "tcp", at); err != nil {
		t.Errorf("after a restart: %q, %v", from, err)
	}
	m.must(m.Publish(ctx, n.id, nil))
	if from, err := dial(neighbour.ns, "tcp", at); err == nil {
		t.Errorf("withdrawn: %q", from)
	}
}

// addrs lists an interface's addresses.
func (m *machine) addrs(device string) (out []string) {
	l, err := netlink.LinkByName(device)
	m.must(err)
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	m.must(err)
	for _, a := range list {
		out = append(out, a.IPNet.String())
	}
	return out
}

func TestCreateRefuses(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "one", Options: map[string]string{OptionBridgeName: "mine"}})
	m.must(err)
	sub := func(s string) []Subnet { return []Subnet{{Subnet: pfx(s)}} }
	for _, tc := range []struct {
		cfg  Config
		want func(error) bool
	}{
		{Config{}, errdefs.IsInvalidArgument},
		{Config{Name: "  "}, errdefs.IsInvalidArgument},
		{Config{Name: "a/b"}, errdefs.IsInvalidArgument},
		{Config{Name: "one"}, errdefs.IsAlreadyExists},
		{Config{Name: "bridge"}, errdefs.IsPermissionDenied},
		{Config{Name: "host"}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Driver: "host"}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Driver: "overlay"}, errdefs.IsNotFound},
		{Config{Name: "x", IPAMDriver: "dhcp"}, errdefs.IsInvalidArgument},
		{Config{Name: "x", NoIPv4: true}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("172.17.5.0/24")}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Subnets: sub("192.0.2.0/25")}, errdefs.IsPermissionDenied}, // the uplink's
		{Config{Name: "x", Subnets: sub("10.0.0.1/24")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("10.0.0.0/32")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("127.0.0.0/8")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("224.0.0.0/8")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", IPv6: true, Subnets: sub("ff00::/64")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", IPv6: true, Subnets: sub("fe80::/80")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", IPv6: true, Subnets: sub("fe80::/32")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("169.254.0.0/16")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: sub("0.0.0.0/8")}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: append(sub("10.0.0.0/24"), sub("10.0.0.128/25")...)}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Subnets: []Subnet{{Gateway: addr("10.0.0.1")}}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: []Subnet{{Subnet: pfx("10.0.0.0/24"), Gateway: addr("10.0.1.1")}}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: []Subnet{{Subnet: pfx("10.0.0.0/24"), Range: pfx("10.0.0.0/16")}}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Subnets: []Subnet{{Subnet: pfx("10.0.0.0/24"), Aux: map[string]netip.Addr{"a": addr("10.0.1.1")}}}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Options: map[string]string{OptionBridgeName: "../etc"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Options: map[string]string{OptionBridgeName: "a-name-that-is-too-long"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Options: map[string]string{OptionBridgeName: "mine"}}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Options: map[string]string{OptionBridgeName: "docker0"}}, errdefs.IsPermissionDenied},
		{Config{Name: "x", Options: map[string]string{OptionMTU: "9"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Options: map[string]string{OptionICC: "perhaps"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverMacvlan, Options: map[string]string{OptionParent: "lo"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverMacvlan, Options: map[string]string{OptionParent: "../eth0"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverMacvlan, Options: map[string]string{OptionParent: "eth7"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverMacvlan, Options: map[string]string{OptionParent: "eth7.10"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverMacvlan, Options: map[string]string{OptionMacvlanMode: "l2"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverIPvlan, Options: map[string]string{OptionIPvlanMode: "bridge"}}, errdefs.IsInvalidArgument},
		{Config{Name: "x", Driver: DriverIPvlan, Options: map[string]string{OptionIPvlanFlag: "l2"}}, errdefs.IsInvalidArgument},
	} {
		if _, err := m.Create(ctx, tc.cfg); !tc.want(err) {
			t.Errorf("%+v: %v", tc.cfg, err)
		}
	}
	for name, want := range map[string]func(error) bool{"bridge": errdefs.IsPermissionDenied, "none": errdefs.IsPermissionDenied, "nope": errdefs.IsNotFound, "": errdefs.IsNotFound} {
		if err := m.Remove(ctx, name); !want(err) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	if len(m.List()) != 4 {
		t.Errorf("%d networks, want 4", len(m.List()))
	}
}

func TestHostAndNone(t *testing.T) {
	m := newMachine(t)
	a := m.container("a", None)
	for _, tc := range []struct{ first, second string }{{None, Bridge}} {
		if _, err := m.Attach(ctx, AttachRequest{ContainerID: a.id, NetNS: a.path, Network: tc.second}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s and %s: %v", tc.first, tc.second, err)
		}
	}
	ep, err := m.Attach(ctx, AttachRequest{ContainerID: "h", ContainerName: "h", Network: Host})
	if err != nil || ep.Interface != "" || ep.IPv4.IsValid() {
		t.Errorf("host: %+v, %v", ep, err)
	}
	if len(m.links()) != 0 {
		t.Errorf("interfaces: %v", m.links())
	}
	m.must(m.Release(ctx, "h"))
	m.must(m.Release(ctx, "h"))
}

func TestFindByPrefix(t *testing.T) {
	m := newMachine(t)
	n, err := m.Create(ctx, Config{Name: "one"})
	m.must(err)
	for _, key := range []string{"one", n.ID, n.ID[:12]} {
		if got, err := m.Get(key); err != nil || got.ID != n.ID {
			t.Errorf("%s: %+v, %v", key, got, err)
		}
	}
	if _, err := m.Get(strings.Repeat("z", 12)); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestEngineRestart(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "one", IPv6: true})
	m.must(err)
	m.must(m.Prepare(ctx))
	a := m.container("a", "one")
	b := m.container("b", Bridge)
	dead := m.container("dead", "one", Bridge)
	serve(t, a.ns, 80)
	m.must(m.Publish(ctx, a.id, []Port{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}))
	m.must(m.Publish(ctx, dead.id, []Port{{Proto: "tcp", HostPort: 8082, ContainerPort: 80}}))
	before := m.Endpoints(a.id)
	live, err := dialHere(before[0].IPv4.Addr().String() + ":80")
	m.must(err)
	defer live.Close()

	m.must(m.Close())
	m.must(os.WriteFile(filepath.Join(m.opts.RunDir, "broken.json"), []byte("{"), 0o600))
	m.open()
	m.must(m.Restore(ctx, func(id string) bool { return id != dead.id }))

	if after := m.Endpoints(a.id); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("endpoints changed: %v, before %v", after, before)
	}
	if len(m.Endpoints(dead.id)) != 0 {
		t.Error("a dead container kept its endpoints")
	}
	if want, got := 4, len(m.links()); got != want { // 2 bridges, 2 containers
		t.Errorf("%d interfaces, want %d: %v", got, want, m.links())
	}
	if link.Pinned(dead.path) {
		t.Error("a dead container's namespace is still pinned")
	}
	if _, err := io.ReadAll(live); err != nil {
		t.Errorf("a connection broke: %v", err)
	}
	for to, ok := range map[string]bool{"127.0.0.1:8080": true, "127.0.0.1:8082": false} {
		if _, err := dial(nil, "tcp", to); (err == nil) != ok {
			t.Errorf("%s after the restart: %v; want an answer: %v", to, err, ok)
		}
	}
	if _, err := lookup(a.ns, "a"); err != nil {
		t.Errorf("DNS after the restart: %v", err)
	}
	if ep := m.container("new").attach(AttachRequest{Network: "one"}); ep.IPv4.Addr() == before[0].IPv4.Addr() {
		t.Error("an address was given twice")
	}
	serve(t, m.outside, 80)
	if from, err := dial(b.ns, "tcp", "192.0.2.1:80"); err != nil || from != "192.0.2.2" {
		t.Errorf("the way out after the restart: %s, %v", from, err)
	}
}

// A new boot finds only the definitions.
// TestCrashWhileChanging: an engine that was killed while it attached or detached a
// container leaves nothing of either.
func TestCrashWhileChanging(t *testing.T) {
	m := newMachine(t)
	for _, name := range []string{"one", "two"} {
		_, err := m.Create(ctx, Config{Name: name})
		m.must(err)
	}
	a := m.container("a", "one", "two")
	serve(t, a.ns, 80)
	m.must(m.Publish(ctx, a.id, []Port{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}))
	eps := m.Endpoints(a.id)
	root, err := link.Dial()
	m.must(err)
	defer root.Close()

	m.must(m.Close())
	m.must(root.Delete(eps[0].Device)) // detached, but not written down
	bridge, err := root.ByName(m.bridge("two"))
	m.must(err)
	ns, err := link.OpenNS(a.path)
	m.must(err)
	defer ns.Close()
	m.must(root.AddVeth(link.VethSpec{Name: "vethhalf", Bridge: bridge.Index, PeerName: "eth7", PeerMAC: link.MAC(addr("172.19.0.9")), PeerNS: ns, MTU: 1500}))
	m.open()
	m.must(m.Restore(ctx, func(string) bool { return true }))

	if left := m.Endpoints(a.id); len(left) != 1 || left[0].ID != eps[1].ID {
		t.Errorf("endpoints: %v", left)
	}
	if _, err := root.ByName("vethhalf"); !link.IsNotExist(err) {
		t.Errorf("an interface that no endpoint has: %v", err)
	}
	if _, err := dial(nil, "tcp", "127.0.0.1:8080"); err != nil {
		t.Errorf("the port that was published by the network it is on no more: %v", err)
	}
	serve(t, m.outside, 80)
	if _, err := dial(a.ns, "tcp", "192.0.2.1:80"); err != nil {
		t.Errorf("the way out: %v", err)
	}
	m.must(m.Remove(ctx, "one"))
	a.attach(AttachRequest{Network: Bridge})
	if got := len(m.Endpoints(a.id)); got != 2 {
		t.Errorf("%d endpoints after another", got)
	}
}

// bridge is the name of a network's.
func (m *machine) bridge(network string) string {
	n, err := m.Get(network)
	m.must(err)
	return n.Device
}

// TestMany: as many networks and ports as somebody may use at once, across an engine's
// end, too.
func TestMany(t *testing.T) {
	m := newMachine(t)
	const networks, ports = 60, 1500
	c := m.container("c")
	for i := range networks {
		_, err := m.Create(ctx, Config{Name: fmt.Sprintf("n%d", i), Subnets: []Subnet{{Subnet: pfx(fmt.Sprintf("10.7.%d.0/24", i))}}})
		m.must(err)
		c.attach(AttachRequest{Network: fmt.Sprintf("n%d", i)})
	}
	serve(t, c.ns, 80)
	var published []Port
	for i := range ports {
		published = append(published, Port{Proto: "tcp", HostPort: uint16(20000 + i), ContainerPort: 80})
	}
	m.must(m.Publish(ctx, c.id, published))
	check := func(when string) {
		t.Helper()
		for _, port := range []int{20000, 20000 + ports - 1} {
			if _, err := dial(nil, "tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
				t.Errorf("%s: port %d: %v", when, port, err)
			}
		}
		if got := len(m.elements()); got != networks {
			t.Errorf("%s: %d bridges in the firewall, want %d", when, got, networks)
		}
	}
	check("published")
	m.must(m.Close())
	m.open()
	m.must(m.Restore(ctx, func(string) bool { return true }))
	check("after a restart")
	m.must(m.Publish(ctx, c.id, nil))
	if _, err := dial(nil, "tcp", "127.0.0.1:20000"); err == nil {
		t.Error("a port is published that was withdrawn")
	}
}

func TestDefinitionsSurviveTheMachine(t *testing.T) {
	m := newMachine(t)
	n, err := m.Create(ctx, Config{Name: "one", Labels: map[string]string{"a": "b"}, Options: map[string]string{OptionMTU: "1300"}})
	m.must(err)
	m.must(m.Close())
	m.open()
	m.must(m.Restore(ctx, func(string) bool { return true }))
	got, err := m.Get("one")
	if err != nil || fmt.Sprint(got) != fmt.Sprint(n) {
		t.Errorf("%+v, %v; want %+v", got, err, n)
	}
}

func TestNewerStateIsRefused(t *testing.T) {
	dir := t.TempDir()
	opts := Options{StateDir: dir, RunDir: dir, NetNSDir: dir}
	for _, content := range []string{`{"version":99}`, `{"version":1,"networks":[{"subnets":[{"subnet":"x"}]}]}`, ""} {
		if err := os.WriteFile(opts.statePath(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := Open(ctx, opts); err == nil {
			m.Close()
			t.Errorf("%q was accepted", content)
		}
		if b, _ := os.ReadFile(opts.statePath()); string(b) != content {
			t.Errorf("%q was changed to %q", content, b)
		}
	}
}

func TestAttachFailureLeavesNothing(t *testing.T) {
	m := newMachine(t)
	_, err := m.Create(ctx, Config{Name: "one"})
	m.must(err)
	a := m.container("a", "one")
	for _, ns := range []string{filepath.Join(t.TempDir(), "missing"), "/dev/null"} {
		if _, err := m.Attach(ctx, AttachRequest{ContainerID: "x", Network: "one", NetNS: ns}); err == nil {
			t.Errorf("attached to %s", ns)
		}
	}
	if len(m.links()) != 2 || len(m.Endpoints("x")) != 0 {
		t.Errorf("left: %v, %v", m.links(), m.Endpoints("x"))
	}
	if ep := m.container("b").attach(AttachRequest{Network: "one"}); ep.IPv4 != pfx("172.18.0.3/16") {
		t.Errorf("an address leaked: got %v", ep.IPv4)
	}
	a.release()
}

func TestClosed(t *testing.T) {
	m := newMachine(t)
	o := m.opts
	o.StateDir, o.RunDir, o.NetNSDir = t.TempDir(), t.TempDir(), t.TempDir()
	c, err := Open(ctx, o)
	m.must(err)
	m.must(c.Close())
	m.must(c.Close())
	if _, err := c.Attach(ctx, AttachRequest{ContainerID: "x", Network: Bridge, NetNS: "/x"}); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if _, err := c.Create(ctx, Config{Name: "n"}); err == nil {
		t.Error("created on a closed manager")
	}
}

// TestFromTheHost reaches containers from the machine's host, without a published port
// of the machine's, and from no other address.
func TestFromTheHost(t *testing.T) {
	m := newMachine(t)
	m.must(m.Close())
	m.opts.Host = addr("192.0.2.1")
	m.open()
	_, err := m.Create(ctx, Config{Name: "second", Subnets: []Subnet{{Subnet: pfx("172.30.0.0/24")}}})
	m.must(err)
	_, err = m.Create(ctx, Config{Name: "closed", Internal: true, Subnets: []Subnet{{Subnet: pfx("172.31.0.0/24")}}})
	m.must(err)
	a := m.container("a", Bridge, "second")
	serve(t, a.ns, 80)
	i := m.container("i", "closed")
	do(t, m.outside, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		_, private, _ := net.ParseCIDR("172.16.0.0/12")
		other, err := netlink.ParseAddr("192.0.2.9/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: private, Gw: net.ParseIP("192.0.2.2")}),
			netlink.AddrAdd(l, other))
	})
	// One of the networks has no way out of the container: answers must come back.
	for to, gateway := range map[string]string{"172.17.0.2:80": "172.17.0.1", "172.30.0.2:80": "172.30.0.1"} {
		if from, err := dial(m.outside, "tcp", to); err != nil || from != gateway {
			t.Errorf("%s was reached from %q: %v", to, from, err)
		}
		do(t, m.outside, func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("192.0.2.9")}, Timeout: 300 * time.Millisecond}
			if c, err := d.Dial("tcp", to); err == nil {
				c.Close()
				t.Errorf("%s was reached from an address that is not the host's", to)
			}
			return nil
		})
	}
	serve(t, i.ns, 80)
	if from, err := dial(i.ns, "tcp", "172.17.0.2:80"); err == nil {
		t.Errorf("an internal network reached another from %s", from)
	}
}
