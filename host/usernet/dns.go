package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// Bounds on DNS.
const (
	maxQueries   = 256              // under way to the host's servers
	maxDNSConns  = 64               // TCP connections of the guest's
	dnsIdle      = 20 * time.Second // of such a connection
	dnsPerServer = 4 * time.Second  // to answer
	maxDNSQuery  = 4096             // bytes of a query by UDP
	hostTTL      = 60               // seconds, of the names below
)

// hostNames are the names of the host's loopback.
var hostNames = map[string]bool{"host.docker.internal.": true, "gateway.docker.internal.": true}

// serveDNS answers at the gateway's port 53. A query is sent on as it came, of
// whatever type, to the servers that the host has at that moment, by the same
// protocol; only hostNames and localhost's are answered here.
func (n *Network) serveDNS() error {
	at := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Gateway.As4()), Port: 53}
	pc, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	ln, err := gonet.ListenTCP(n.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		pc.Close()
		return err
	}
	queries, conns := newSlots(maxQueries), newSlots(maxDNSConns)
	n.wg.Go(func() {
		defer context.AfterFunc(n.ctx, func() { pc.Close() })()
		n.dnsDatagrams(pc, queries)
	})
	n.wg.Go(func() {
		defer context.AfterFunc(n.ctx, func() { ln.Shutdown(); ln.Close() })()
		n.dnsConns(ln, conns, queries)
	})
	return nil
}

func (n *Network) dnsDatagrams(pc net.PacketConn, queries slots) {
	buf := make([]byte, maxDNSQuery)
	for {
		size, from, err := pc.ReadFrom(buf)
		if err != nil {
			if n.ctx.Err() != nil {
				return
			}
			n.log.Warn("the DNS server's socket failed", "error", err)
			return
		}
		query := append([]byte(nil), buf[:size]...)
		if answer, ok := hostAnswer(query); ok {
			pc.WriteTo(answer, from)
			continue
		}
		if !isQuery(query) {
			continue
		}
		if !queries.take() {
			pc.WriteTo(serverFailure(query), from)
			continue
		}
		n.wg.Go(func() {
			defer queries.release()
			pc.WriteTo(n.ask("udp", query), from)
		})
	}
}

func (n *Network) dnsConns(ln net.Listener, conns, queries slots) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		if !conns.take() {
			c.Close()
			continue
		}
		n.wg.Go(func() {
			defer conns.release()
			defer c.Close()
			defer context.AfterFunc(n.ctx, func() { c.Close() })()
			n.dnsConn(c, queries)
		})
	}
}

// dnsConn answers the queries of one connection, in order.
func (n *Network) dnsConn(c net.Conn, queries slots) {
	for {
		c.SetDeadline(time.Now().Add(dnsIdle))
		query, err := (&dns.Conn{Conn: c}).ReadMsgHeader(nil)
		if err != nil || !isQuery(query) {
			return
		}
		answer, ok := hostAnswer(query)
		if !ok {
			if !queries.take() {
				answer = serverFailure(query)
			} else {
				answer = n.ask("tcp", query)
				queries.release()
			}
		}
		c.SetDeadline(time.Now().Add(dnsIdle))
		if _, err := (&dns.Conn{Conn: c}).Write(answer); err != nil {
			return
		}
	}
}

// hostAnswer answers a question for a name that no server of the host's knows.
func hostAnswer(query []byte) ([]byte, bool) {
	// A look before the parser keeps the common case cheap.
	if !isQuery(query) || !mentionsOwn(query) {
		return nil, false
	}
	q := new(dns.Msg)
	if q.Unpack(query) != nil || len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return nil, false
	}
	quest := q.Question[0]
	addrs, ok := ownAddrs(strings.ToLower(quest.Name))
	if quest.Qclass != dns.ClassINET || !ok {
		return nil, false
	}
	r := new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	for _, ip := range addrs {
		hdr := dns.RR_Header{Name: quest.Name, Rrtype: quest.Qtype, Class: dns.ClassINET, Ttl: hostTTL}
		switch {
		case quest.Qtype == dns.TypeA && ip.Is4():
			r.Answer = append(r.Answer, &dns.A{Hdr: hdr, A: ip.AsSlice()})
		case quest.Qtype == dns.TypeAAAA && ip.Is6():
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: hdr, AAAA: ip.AsSlice()})
		}
	}
	b, err := r.Pack()
	return b, err == nil
}

// ownAddrs are the addresses of a name, in lower case, that is answered here: one of
// hostNames, or one of the asker's own loopback (RFC 6761, section 6.3).
func ownAddrs(name string) ([]netip.Addr, bool) {
	switch {
	case hostNames[name]:
		return []netip.Addr{Host}, true
	case name == "localhost.", strings.HasSuffix(name, ".localhost."):
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	}
	return nil, false
}

func mentionsOwn(query []byte) bool {
	names := strings.ToLower(string(query[12:]))
	return strings.Contains(names, "\x08internal\x00") || strings.Contains(names, "\x09localhost\x00")
}

// isQuery reports whether b can be a question: a header's length, and not an
// answer.
func isQuery(b []byte) bool { return len(b) >= 12 && b[2]&0x80 == 0 }

// serverFailure is the answer when nobody answers: the question's header and,
// where it is whole, the question.
func serverFailure(query []byte) []byte {
	b := append([]byte(nil), query[:12]...)
	end := questionEnd(query)
	b = append(b, query[12:end]...)
	b[2] |= 0x80                                      // a response
	b[3] = 0x80 | dns.RcodeServerFailure              // recursion available
	clear(b[4:12])                                    // no records
	binary.BigEndian.PutUint16(b[4:], btou(end > 12)) // but the question
	return b
}

func btou(b bool) uint16 {
	if b {
		return 1
	}
	return 0
}

// questionEnd is the offset behind the first question, or 12 when it is not
// whole or is compressed.
func questionEnd(query []byte) int {
	for i := 12; i < len(query); {
		size := int(query[i])
		switch {
		case size == 0 && i+5 <= len(query):
			return i + 5
		case size == 0 || size > 63:
			return 12
		}
		i += 1 + size
	}
	return 12
}

// ask sends a query to the host's servers in turn. It returns the first answer
// that is neither a failure nor a refusal, or else the last one.
func (n *Network) ask(network string, query []byte) []byte {
	answer := serverFailure(query)
	for _, server := range n.opts.Servers() {
		a, err := n.exchange(network, server, query)
		if err != nil {
			n.log.Debug("a DNS server of the host's does not answer", "server", server, "error", err)
			continue
		}
		answer = a
		if rcode := a[3] & 0xf; rcode != dns.RcodeServerFailure && rcode != dns.RcodeRefused {
			break
		}
	}
	return answer
}

func (n *Network) exchange(network string, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dnsPerServer)
	defer cancel()
	c, err := n.opts.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	isAnswer := func(b []byte) bool {
		return len(b) >= 12 && b[0] == query[0] && b[1] == query[1] && b[2]&0x80 != 0
	}
	if network == "tcp" {
		if _, err := (&dns.Conn{Conn: c}).Write(query); err != nil {
			return nil, err
		}
		b, err := (&dns.Conn{Conn: c}).ReadMsgHeader(nil)
		if err == nil && !isAnswer(b) {
			err = errors.New("the answer is to another question")
		}
		return b, err
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		size, err := c.Read(*b)
		if err != nil {
			return nil, err
		}
		if isAnswer((*b)[:size]) {
			return append([]byte(nil), (*b)[:size]...), nil
		}
	}
}
