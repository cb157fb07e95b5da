package resolver

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zone is a Zone of two names.
type zone struct{ upstream []netip.AddrPort }

func (z zone) Lookup(name string) ([]netip.Addr, bool) {
	switch name {
	case "web":
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}, true
	case "four":
		return []netip.Addr{netip.MustParseAddr("10.0.0.4")}, true
	case "many":
		var out []netip.Addr
		for a := netip.MustParseAddr("10.1.0.0"); len(out) < 200; a = a.Next() {
			out = append(out, a)
		}
		return out, true
	}
	return nil, false
}

func (z zone) Reverse(a netip.Addr) (string, bool) {
	switch a.String() {
	case "10.0.0.4":
		return "four.net", true
	case "fd00::1":
		return "web.net", true
	}
	return "", false
}

func (z zone) Upstream() []netip.AddrPort { return z.upstream }

// listenBoth listens by UDP and TCP on one port.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp4", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		pc.Close() // somebody has the port by TCP
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func start(t *testing.T, z Zone) (addr string) {
	t.Helper()
	pc, ln := listenBoth(t)
	s := Serve(z, slog.New(slog.DiscardHandler), pc, ln)
	t.Cleanup(s.Close)
	return pc.LocalAddr().String()
}

// upstream is a server that answers by a handler, by UDP and TCP.
func upstream(t *testing.T, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, ln := listenBoth(t)
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func ask(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	r, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(q, addr)
	if err != nil {
		t.Fatalf("%s %v: %v", network, q.Question, err)
	}
	return r
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

func values(r *dns.Msg) string {
	var out []string
	for _, rr := range r.Answer {
		f := strings.Fields(rr.String())
		out = append(out, f[len(f)-1])
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestAnswers(t *testing.T) {
	up := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		r.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{w.LocalAddr().Network()}}}
		w.WriteMsg(r)
	})
	addr := start(t, zone{[]netip.AddrPort{up}})
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  string // the values; of the upstream it is the protocol
	}{
		{"web", dns.TypeA, "10.0.0.1 10.0.0.2"},
		{"WEB", dns.TypeA, "10.0.0.1 10.0.0.2"},
		{"web", dns.TypeAAAA, "fd00::1"},
		{"four", dns.TypeAAAA, ""},
		{"four", dns.TypeMX, ""},
		{"4.0.0.10.in-addr.arpa", dns.TypePTR, "four.net."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR, "web.net."},
		{"9.9.9.9.in-addr.arpa", dns.TypePTR, "forwarded"},
		{"x.in-addr.arpa", dns.TypePTR, "forwarded"},
		{"example.com", dns.TypeA, "forwarded"},
		{"example.com", 65280, "forwarded"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, network, addr, question(tc.name, tc.qtype))
			want := strings.ReplaceAll(tc.want, "forwarded", `"`+network+`"`)
			if got := values(r); got != want || r.Rcode != dns.RcodeSuccess || len(r.Question) != 1 {
				t.Errorf("%s %s %s: %q, rcode %d; want %q", network, tc.name, dns.TypeToString[tc.qtype], got, r.Rcode, want)
			}
		}
	}
}

func TestRoundRobin(t *testing.T) {
	addr := start(t, zone{})
	first := map[string]bool{}
	for range 60 {
		first[ask(t, "udp", addr, question("web", dns.TypeA)).Answer[0].String()] = true
	}
	if len(first) != 2 {
		t.Errorf("the first answer was always %v", first)
	}
}

func TestLargeAnswersAreTruncated(t *testing.T) {
	addr := start(t, zone{})
	r := ask(t, "udp", addr, question("many", dns.TypeA))
	r.Compress = true // as it was sent
	if !r.Truncated || r.Len() > dns.MinMsgSize {
		t.Errorf("truncated %v, %d bytes", r.Truncated, r.Len())
	}
	q := question("many", dns.TypeA).SetEdns0(4096, false)
	if r := ask(t, "udp", addr, q); r.Truncated || len(r.Answer) != 200 || r.IsEdns0() == nil {
		t.Errorf("with EDNS: truncated %v, %d answers", r.Truncated, len(r.Answer))
	}
	if r := ask(t, "tcp", addr, question("many", dns.TypeA)); len(r.Answer) != 200 {
		t.Errorf("by TCP: %d answers", len(r.Answer))
	}
}

func TestUpstreamsInTurn(t *testing.T) {
	rcode := func(code int) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
	}
	bad, good := upstream(t, rcode(dns.RcodeServerFailure)), upstream(t, rcode(dns.RcodeNameError))
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := netip.MustParseAddrPort(closed.LocalAddr().String())
	closed.Close()
	for _, tc := range []struct {
		servers []netip.AddrPort
		want    int
	}{
		{nil, dns.RcodeServerFailure},
		{[]netip.AddrPort{dead}, dns.RcodeServerFailure},
		{[]netip.AddrPort{dead, bad, good}, dns.RcodeNameError},
		{[]netip.AddrPort{good, bad}, dns.RcodeNameError},
		{[]netip.AddrPort{bad, dead}, dns.RcodeServerFailure},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if r := ask(t, network, start(t, zone{tc.servers}), question("x", dns.TypeA)); r.Rcode != tc.want {
				t.Errorf("%v by %s: rcode %d, want %d", tc.servers, network, r.Rcode, tc.want)
			}
		}
	}
}

func TestOddQueries(t *testing.T) {
	addr := start(t, zone{})
	two := question("web", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	status := question("web", dns.TypeA)
	status.Opcode = dns.OpcodeStatus
	for q, want := range map[*dns.Msg]int{two: dns.RcodeFormatError, status: dns.RcodeNotImplemented} {
		if r := ask(t, "udp", addr, q); r.Rcode != want {
			t.Errorf("%v: rcode %d, want %d", q, r.Rcode, want)
		}
	}
	// What is not a query gets no answer, and does no harm.
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := question("web", dns.TypeA)
	answer.Response = true
	b, _ := answer.Pack()
	for _, b := range [][]byte{{}, {1, 2, 3}, make([]byte, 4096), b} {
		c.Write(b)
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 512)); err == nil && n > 12 {
		t.Errorf("an answer of %d bytes", n)
	}
	ask(t, "udp", addr, question("web", dns.TypeA))
}

// A client that floods with queries that nobody answers holds a bounded number,
// and Close does not wait for them.
func TestFloodIsBounded(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	pc, ln := listenBoth(t)
	s := Serve(zone{[]netip.AddrPort{netip.MustParseAddrPort(silent.LocalAddr().String())}}, slog.New(slog.DiscardHandler), pc, ln)
	c, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var failures sync.WaitGroup
	failures.Go(func() {
		b := make([]byte, 512)
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(b); err != nil || b[3]&0xf != dns.RcodeServerFailure {
			t.Errorf("the flood was not refused: %v", err)
		}
	})
	for i := range 4 * maxForwards {
		q := question("x", dns.TypeA)
		q.Id = uint16(i)
		b, _ := q.Pack()
		c.Write(b)
		time.Sleep(100 * time.Microsecond) // the kernel's buffer holds only so many
	}
	failures.Wait()
	if n := len(s.forwards); n > maxForwards {
		t.Errorf("%d queries under way", n)
	}
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("Close took %s", took)
	}
}

func FuzzLocal(f *testing.F) {
	for _, q := range []*dns.Msg{question("web", dns.TypeA), question("x", dns.TypeMX), question("4.0.0.10.in-addr.arpa", dns.TypePTR), question("many", dns.TypeA).SetEdns0(1232, true)} {
		b, _ := q.Pack()
		f.Add(b)
	}
	s := &Server{zone: zone{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		forward, answer := s.local(b, dns.MinMsgSize)
		if forward != nil && answer != nil {
			t.Error("answered and forwarded")
		}
		if answer != nil {
			r := new(dns.Msg)
			if err := r.Unpack(answer); err != nil || !r.Response {
				t.Errorf("%x: %v", answer, err)
			}
		}
		if forward != nil {
			failure(forward)
		}
	})
}
