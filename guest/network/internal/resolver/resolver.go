// Package resolver is the DNS server of one container: it answers for the names
// of a Zone and forwards everything else, as it came, to other servers.
//
// Its clients are containers, so a query is untrusted: it is parsed once, and
// what a client can make the server hold is bounded.
package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds on one server.
const (
	maxForwards = 64 // queries under way to other servers
	maxStreams  = 32 // TCP connections
	idleStream  = 15 * time.Second
	perServer   = 4 * time.Second // to answer a forwarded query
	ttl         = 600             // seconds, as docker has it
	maxQuery    = 4096            // bytes of a query by UDP
)

// Zone is what a container can resolve. Its methods are called at once.
type Zone interface {
	// Lookup returns the addresses that a name has. found is true for a name that
	// exists, though it may have no address of the wanted kind. The name has no
	// trailing dot and is in lower case.
	Lookup(name string) (addrs []netip.Addr, found bool)
	// Reverse returns the name of an address, without a trailing dot.
	Reverse(addr netip.Addr) (name string, found bool)
	// Upstream returns the servers for everything else, in the order to try them.
	// With none, such queries fail.
	Upstream() []netip.AddrPort
}

// Server is one container's.
type Server struct {
	zone   Zone
	log    *slog.Logger
	cancel context.CancelFunc
	ctx    context.Context // the server's life: Close cancels it
	pc     net.PacketConn
	ln     net.Listener
	wg     sync.WaitGroup

	forwards chan struct{}
	mu       sync.Mutex
	streams  map[net.Conn]struct{}
}

// Serve starts a server on pc and ln, which it owns from then on, and returns.
func Serve(zone Zone, log *slog.Logger, pc net.PacketConn, ln net.Listener) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		zone: zone, log: log, ctx: ctx, cancel: cancel, pc: pc, ln: ln,
		forwards: make(chan struct{}, maxForwards), streams: map[net.Conn]struct{}{},
	}
	s.wg.Go(s.datagrams)
	s.wg.Go(s.accept)
	return s
}

// Close stops the server and waits for its goroutines.
func (s *Server) Close() {
	s.cancel()
	s.pc.Close()
	s.ln.Close()
	s.mu.Lock()
	for c := range s.streams {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) datagrams() {
	buf := make([]byte, maxQuery)
	for {
		n, from, err := s.pc.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		query, answer := s.local(buf[:n], dns.MinMsgSize)
		if answer != nil {
			s.pc.WriteTo(answer, from)
		}
		if query == nil {
			continue
		}
		select {
		case s.forwards <- struct{}{}:
		default:
			s.pc.WriteTo(failure(query), from)
			continue
		}
		raw := slices.Clone(buf[:n])
		s.wg.Go(func() {
			defer func() { <-s.forwards }()
			s.pc.WriteTo(s.forward("udp", raw, query), from)
		})
	}
}

func (s *Server) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors: let others end first.
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.mu.Lock()
		ok := len(s.streams) < maxStreams && s.ctx.Err() == nil
		if ok {
			s.streams[c] = struct{}{}
		}
		s.mu.Unlock()
		if !ok {
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer func() {
				c.Close()
				s.mu.Lock()
				delete(s.streams, c)
				s.mu.Unlock()
			}()
			s.stream(c)
		})
	}
}

// stream answers the queries of one TCP connection, in order.
func (s *Server) stream(c net.Conn) {
	for {
		c.SetDeadline(time.Now().Add(idleStream))
		raw, err := (&dns.Conn{Conn: c}).ReadMsgHeader(nil)
		if err != nil {
			return
		}
		query, answer := s.local(raw, dns.MaxMsgSize)
		if query != nil {
			select {
			case s.forwards <- struct{}{}:
				answer = s.forward("tcp", raw, query)
				<-s.forwards
			case <-s.ctx.Done():
				return
			}
		}
		if answer == nil {
			return // not DNS
		}
		c.SetDeadline(time.Now().Add(idleStream))
		if _, err := (&dns.Conn{Conn: c}).Write(answer); err != nil {
			return
		}
	}
}

// local answers a query that the zone, or nobody, can answer; limit is the size
// of an answer where the query names none. A query for other servers is
// returned. Both are nil for what deserves no answer.
func (s *Server) local(raw []byte, limit int) (forward *dns.Msg, answer []byte) {
	q := new(dns.Msg)
	if err := q.Unpack(raw); err != nil || q.Response {
		return nil, nil
	}
	if q.Opcode != dns.OpcodeQuery {
		return nil, pack(reply(q, dns.RcodeNotImplemented), limit)
	}
	if len(q.Question) != 1 {
		return nil, pack(reply(q, dns.RcodeFormatError), limit)
	}
	r := s.resolve(q)
	if r == nil {
		return q, nil
	}
	if o := q.IsEdns0(); o != nil && limit < dns.MaxMsgSize {
		limit = max(limit, int(o.UDPSize()))
	}
	return nil, pack(r, limit)
}

// resolve asks the zone; nil means that it does not know.
func (s *Server) resolve(q *dns.Msg) *dns.Msg {
	quest := q.Question[0]
	if quest.Qclass != dns.ClassINET {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(quest.Name, "."))
	hdr := dns.RR_Header{Name: quest.Name, Rrtype: quest.Qtype, Class: dns.ClassINET, Ttl: ttl}
	if quest.Qtype == dns.TypePTR {
		addr, ok := fromReverse(name)
		if !ok {
			return nil
		}
		host, ok := s.zone.Reverse(addr)
		if !ok {
			return nil
		}
		r := reply(q, dns.RcodeSuccess)
		r.Answer = []dns.RR{&dns.PTR{Hdr: hdr, Ptr: dns.Fqdn(host)}}
		return r
	}
	addrs, ok := s.zone.Lookup(name)
	if !ok {
		return nil
	}
	addrs = slices.Clone(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	r := reply(q, dns.RcodeSuccess)
	for _, a := range addrs {
		switch {
		case quest.Qtype == dns.TypeA && a.Is4():
			r.Answer = append(r.Answer, &dns.A{Hdr: hdr, A: a.AsSlice()})
		case quest.Qtype == dns.TypeAAAA && a.Is6():
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
		}
	}
	return r
}

func reply(q *dns.Msg, rcode int) *dns.Msg {
	r := new(dns.Msg)
	r.SetRcode(q, rcode)
	r.RecursionAvailable = true
	if o := q.IsEdns0(); o != nil {
		r.SetEdns0(dns.DefaultMsgSize, o.Do())
	}
	return r
}

func failure(q *dns.Msg) []byte { return pack(reply(q, dns.RcodeServerFailure), dns.MinMsgSize) }

func pack(r *dns.Msg, limit int) []byte {
	r.Truncate(limit)
	b, err := r.Pack()
	if err != nil {
		return nil
	}
	return b
}

// fromReverse is the address in a name below in-addr.arpa or ip6.arpa.
func fromReverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		b.WriteByte(s[i])
		if i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}

// forward asks the zone's servers in turn and returns the first good answer, or
// else the last one, or a failure.
func (s *Server) forward(network string, raw []byte, q *dns.Msg) []byte {
	var last []byte
	for _, up := range s.zone.Upstream() {
		answer, err := s.exchange(network, up, raw, q)
		if err != nil {
			s.log.Debug("a DNS server does not answer", "server", up, "error", err)
			continue
		}
		last = answer
		if rcode := answer[3] & 0xf; rcode != dns.RcodeServerFailure && rcode != dns.RcodeRefused {
			break
		}
	}
	if last == nil {
		return failure(q)
	}
	return last
}

// exchange sends one query and returns the answer to it, at least a header long.
func (s *Server) exchange(network string, to netip.AddrPort, raw []byte, q *dns.Msg) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, perServer)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		if _, err := (&dns.Conn{Conn: c}).Write(raw); err != nil {
			return nil, err
		}
		answer, err := (&dns.Conn{Conn: c}).ReadMsgHeader(nil)
		if err == nil && !answers(answer, q) {
			err = errors.New("the answer is to another question")
		}
		return answer, err
	}
	if _, err := c.Write(raw); err != nil {
		return nil, err
	}
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], q) {
			return slices.Clone(buf[:n]), nil
		}
	}
}

// answers reports whether b is a response to q.
func answers(b []byte, q *dns.Msg) bool {
	return len(b) >= 12 && binary.BigEndian.Uint16(b) == q.Id && b[2]&0x80 != 0
}
