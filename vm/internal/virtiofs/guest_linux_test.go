package virtiofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// What the test's server does is the request's opcode.
const (
	opEcho   = 1 // reply with the request
	opSilent = 2 // no reply
	opHang   = 3 // as opEcho, once release was called
	opLong   = 4 // claim a longer reply than there is room for
)

// server is a vm.ShareServer for tests.
type server struct {
	mu      sync.Mutex // guards what follows
	gate    chan struct{}
	under   int // requests under way
	most    int
	served  int
	resets  int
	overlap bool // a request was under way during a reset
	silent  chan struct{}
}

func newServer() *server {
	return &server{gate: make(chan struct{}), silent: make(chan struct{}, 1000)}
}

// HandleRequest implements vm.ShareServer.
func (s *server) HandleRequest(in, out [][]byte) int {
	request := bytes.Join(in, nil)
	s.mu.Lock()
	s.under++
	s.served++
	s.most = max(s.most, s.under)
	gate := s.gate
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.under--
		s.mu.Unlock()
	}()
	switch binary.LittleEndian.Uint32(request[4:]) {
	case opSilent:
		s.silent <- struct{}{}
		return 0
	case opHang:
		<-gate
	case opLong:
		return 1 << 40
	}
	n := 0
	for _, b := range out {
		n += copy(b, request[n:])
	}
	return n
}

// Reset implements vm.ShareServer.
func (s *server) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets++
	s.overlap = s.overlap || s.under > 0
	return nil
}

// release lets the requests go on that hang.
func (s *server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.gate)
	s.gate = make(chan struct{})
}

func (s *server) state() (under, served, resets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.under, s.served, s.resets
}

// guest is a driver with both queues.
type guest struct {
	t      testing.TB
	fe     *vhosttest.FrontEnd
	server *server
	rings  [2]*vhosttest.Ring
	served chan error
	sent   map[[2]uint16]sent // by ring and head
}

// sent is a request that the device has.
type sent struct {
	request []byte
	reply   uint64 // where in memory
}

const (
	ringSize = 128
	memory   = 64 << 20
)

func startGuest(t testing.TB, features uint64) *guest {
	t.Helper()
	front, back := vhosttest.Pair(t)
	s := newServer()
	d, err := New("folder", s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, fe: vhosttest.New(t, front, memory), server: s, served: make(chan error, 1), sent: map[[2]uint16]sent{}}
	go func() { g.served <- d.Serve(context.Background(), back) }()
	t.Cleanup(func() {
		g.fe.Close()
		s.release()
		select {
		case <-g.served:
		case <-time.After(patience):
			t.Error("the device does not end")
		}
	})
	g.fe.Realize(maxTag + 4)
	for i := range g.rings {
		g.rings[i] = g.fe.NewRing(uint32(i), ringSize)
	}
	g.fe.Start(vhosttest.FeatureVersion1|features, g.rings[0], g.rings[1])
	return g
}

// reset is what QEMU and the guest do when the guest restarts.
func (g *guest) reset() {
	g.fe.Stop(g.rings[0], g.rings[1])
	for _, r := range g.rings {
		r.Reset()
	}
	g.sent = map[[2]uint16]sent{}
	g.fe.Start(vhosttest.FeatureVersion1, g.rings[0], g.rings[1])
}

// message makes a request of n bytes with its header.
func message(op uint32, n int, fill byte) []byte {
	b := bytes.Repeat([]byte{fill}, n)
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint32(b[4:], op)
	return b
}

// offer queues a request with room for a reply, in pieces as Linux does: header,
// arguments; header, rest.
func (g *guest) offer(ring int, req []byte, room int) {
	g.t.Helper()
	at := g.fe.Alloc(len(req) + room)
	copy(g.fe.Memory()[at:], req)
	cut := min(headerLen, len(req))
	bufs := []vhosttest.Buffer{{Off: at, Len: uint32(cut)}}
	if cut < len(req) {
		bufs = append(bufs, vhosttest.Buffer{Off: at + uint64(cut), Len: uint32(len(req) - cut)})
	}
	if room > 0 {
		bufs = append(bufs, vhosttest.Buffer{Off: at + uint64(len(req)), Len: uint32(min(room, 16)), Write: true})
	}
	if room > 16 {
		bufs = append(bufs, vhosttest.Buffer{Off: at + uint64(len(req)) + 16, Len: uint32(room - 16), Write: true})
	}
	head := g.rings[ring].Offer(bufs...)
	g.sent[[2]uint16{uint16(ring), head}] = sent{req, at + uint64(len(req))}
}

// take waits for the next reply and returns it with its request.
func (g *guest) take(ring int) (req, reply []byte) {
	g.t.Helper()
	if !g.rings[ring].Wait(patience) {
		g.t.Fatal("no reply, or no call for it")
	}
	head, n, _ := g.rings[ring].Take()
	key := [2]uint16{uint16(ring), head}
	s, ok := g.sent[key]
	if !ok {
		g.t.Fatalf("chain %d was given back and is not the device's", head)
	}
	delete(g.sent, key)
	return s.request, g.fe.Memory()[s.reply:][:n]
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came about: %s", what)
		}
	}
}
