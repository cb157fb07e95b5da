package network

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/berthvm/berth/guest/network/internal/link"
)

// ask sends one question to 127.0.0.11 in a container.
func ask(ns *link.NS, network, name string, qtype uint16) (*dns.Msg, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(context.Background(), network, "127.0.0.11:53")
		return err
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	co := &dns.Conn{Conn: c}
	if err := co.WriteMsg(q); err != nil {
		return nil, err
	}
	return co.ReadMsg()
}

// lookup returns a name's IPv4 addresses, sorted.
func lookup(ns *link.NS, name string) ([]string, error) {
	r, err := ask(ns, "udp", name, dns.TypeA)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, rr := range r.Answer {
		if a, ok := rr.(*dns.A); ok {
			out = append(out, a.A.String())
		}
	}
	slices.Sort(out)
	return out, nil
}

func TestNames(t *testing.T) {
	m := newMachine(t)
	for _, n := range []Config{{Name: "one"}, {Name: "two"}, {Name: "closed", Internal: true}} {
		_, err := m.Create(ctx, n)
		m.must(err)
	}
	a, b, c := m.container("a"), m.container("b"), m.container("c")
	a.attach(AttachRequest{Network: "one", Names: []string{"web", "0123456789ab"}})
	b.attach(AttachRequest{Network: "one", Names: []string{"web"}, Links: map[string]string{"db": "a"}})
	c.attach(AttachRequest{Network: "two"})
	for _, tc := range []struct {
		from *container
		name string
		want []string
	}{
		{b, "a", []string{"172.18.0.2"}},
		{b, "A", []string{"172.18.0.2"}},
		{b, "a.one", []string{"172.18.0.2"}},
		{b, "0123456789ab", []string{"172.18.0.2"}},
		{b, "db", []string{"172.18.0.2"}},
		{a, "web", []string{"172.18.0.2", "172.18.0.3"}},
		{a, "db", nil},
		{a, "c", nil},
		{c, "c", []string{"172.19.0.2"}},
		{c, "web", nil},
	} {
		if got, err := lookup(tc.from.ns, tc.name); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s asks for %s: %v, %v; want %v", tc.from.id, tc.name, got, err, tc.want)
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		r, err := ask(a.ns, network, "3.0.18.172.in-addr.arpa", dns.TypePTR)
		if err != nil || len(r.Answer) != 1 || r.Answer[0].(*dns.PTR).Ptr != "b.one." {
			t.Errorf("reverse by %s: %v, %v", network, r, err)
		}
	}
	m.must(m.Rename(ctx, b.id, "bee"))
	if got, err := lookup(a.ns, "bee"); err != nil || len(got) != 1 {
		t.Errorf("renamed: %v, %v", got, err)
	}
	if got, err := lookup(a.ns, "b"); err != nil || len(got) != 0 {
		t.Errorf("old name: %v, %v", got, err)
	}
	// The server comes and goes with user-defined networks.
	d := m.container("d", Bridge)
	if _, err := lookup(d.ns, "a"); err == nil {
		t.Error("a container on the default bridge has a DNS server")
	}
	d.attach(AttachRequest{Network: "one"})
	if got, err := lookup(d.ns, "bee"); err != nil || len(got) != 1 {
		t.Errorf("after connect: %v, %v", got, err)
	}
	m.must(m.Detach(ctx, d.id, "one"))
	if _, err := lookup(d.ns, "bee"); err == nil {
		t.Error("the DNS server stayed after disconnect")
	}
}
