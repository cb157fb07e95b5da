package virtiofs

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestConfigSpace(t *testing.T) {
	front, back := vhosttest.Pair(t)
	d, err := New("folder", newServer(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(t.Context(), back) }()
	fe := vhosttest.New(t, front, 1<<20)
	_, config := fe.Realize(maxTag + 4)
	if tag := string(bytes.TrimRight(config[:maxTag], "\x00")); tag != "folder" {
		t.Errorf("the tag is %q", tag)
	}
	if n := binary.LittleEndian.Uint32(config[maxTag:]); n != 1 {
		t.Errorf("%d request queues", n)
	}
	fe.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for _, tag := range []string{"", strings.Repeat("x", 37), "a b", "a\x00"} {
		if _, err := New(tag, nil, nil); err == nil {
			t.Errorf("a device with the tag %q", tag)
		}
	}
}

func TestReplies(t *testing.T) {
	for name, features := range map[string]uint64{
		"plain": 0, "linux": vhosttest.FeatureEventIdx | vhosttest.FeatureIndirect,
	} {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, features)
			for i, n := range []int{headerLen, headerLen + 1, 200, 5000, 1 << 20, maxMessage} {
				for ring := range g.rings {
					g.offer(ring, message(opEcho, n, byte(i)), n+100)
					g.rings[ring].Kick()
					if req, reply := g.take(ring); !bytes.Equal(req, reply) {
						t.Errorf("a request of %d bytes on queue %d came back as %d bytes, or others", n, ring, len(reply))
					}
				}
			}
		})
	}
}

func TestReplyWithoutRoom(t *testing.T) {
	g := startGuest(t, 0)
	for room, want := range map[int]int{0: 0, 16: 16, 50: 50} {
		g.offer(1, message(opEcho, 300, 1), room)
		g.rings[1].Kick()
		if req, reply := g.take(1); len(reply) != want || !bytes.Equal(reply, req[:want]) {
			t.Errorf("with room for %d bytes the reply has %d", room, len(reply))
		}
	}
	g.offer(1, message(opLong, 100, 1), 64)
	g.rings[1].Kick()
	if _, reply := g.take(1); len(reply) != 64 {
		t.Errorf("a reply that is longer than its room: %d bytes", len(reply))
	}
}

func TestNoReply(t *testing.T) {
	g := startGuest(t, 0)
	for range 20 {
		g.offer(0, message(opSilent, 60, 1), 0)
	}
	g.rings[0].Kick()
	for range 20 {
		if _, reply := g.take(0); len(reply) != 0 {
			t.Errorf("a reply of %d bytes to a request without", len(reply))
		}
	}
	if _, served, _ := g.server.state(); served != 20 {
		t.Errorf("%d of 20 requests were served", served)
	}
}

// TestRefused: what is too short or too long is given back unserved.
func TestRefused(t *testing.T) {
	g := startGuest(t, 0)
	for _, n := range []int{1, headerLen - 1, maxMessage + 1, 3 << 20} {
		b := make([]byte, n)
		g.offer(1, b, 100)
		g.rings[1].Kick()
		if _, reply := g.take(1); len(reply) != 0 {
			t.Errorf("a request of %d bytes got a reply", n)
		}
	}
	g.offer(1, message(opEcho, 100, 1), 8<<20) // room is no harm
	g.rings[1].Kick()
	if req, reply := g.take(1); !bytes.Equal(req, reply) {
		t.Error("a request with much room was not answered")
	}
	if _, served, _ := g.server.state(); served != 1 {
		t.Errorf("the server saw %d requests", served)
	}
}

// TestConcurrent: requests run at once, and a slow one does not hold up others.
func TestConcurrent(t *testing.T) {
	g := startGuest(t, vhosttest.FeatureEventIdx)
	g.offer(1, message(opHang, 100, 0), 100)
	for i := range 20 {
		g.offer(1, message(opEcho, 100+i, byte(i)), 200)
	}
	g.rings[1].Kick()
	for range 20 {
		if req, reply := g.take(1); !bytes.Equal(req, reply) || req[4] != opEcho {
			t.Errorf("%d bytes came back as %d", len(req), len(reply))
		}
	}
	g.server.release()
	if req, reply := g.take(1); !bytes.Equal(req, reply) || req[4] != opHang {
		t.Error("the slow request was not answered")
	}
	// More than the ring holds, kept full.
	const total = 5000
	offered := 0
	for done := 0; done < total; done++ {
		for offered < total && g.rings[1].Free() >= 4 && offered-done < 30 {
			g.offer(1, message(opEcho, 48, byte(offered)), 64)
			offered++
			g.rings[1].Kick()
		}
		if req, reply := g.take(1); !bytes.Equal(req, reply) {
			t.Fatalf("request %d: other bytes came back", done)
		}
	}
}

// TestBudget: what is beyond the limits waits in the ring, and goes on.
func TestBudget(t *testing.T) {
	for name, c := range map[string]struct{ requests, room, most int }{
		"requests": {maxInFlight + 60, 0, maxInFlight},
		"memory":   {40, 1 << 20, maxMemory>>20 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, 0)
			for range c.requests {
				g.offer(1, message(opHang, headerLen, 0), c.room)
			}
			g.rings[1].Kick()
			eventually(t, "as many requests as may", func() bool { under, _, _ := g.server.state(); return under >= c.most-1 })
			time.Sleep(20 * time.Millisecond)
			under, _, _ := g.server.state()
			if under > c.most {
				t.Errorf("%d requests are under way, at most %d may", under, c.most)
			}
			// The other queue has its share too.
			g.offer(0, message(opEcho, headerLen, 0), 64)
			g.rings[0].Kick()
			answered, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-answered:
						return
					case <-time.After(time.Millisecond):
						g.server.release()
					}
				}
			}()
			for range c.requests {
				g.take(1)
			}
			g.take(0)
			close(answered)
			<-done
			if _, served, _ := g.server.state(); served != c.requests+1 {
				t.Errorf("%d of %d requests were served", served, c.requests+1)
			}
		})
	}
}

// TestReset: a new driver's requests wait for the old one's, the transport does
// not.
func TestReset(t *testing.T) {
	g := startGuest(t, 0)
	for round := range 5 {
		for range 3 {
			g.offer(1, message(opHang, 100, byte(round)), 100)
		}
		g.rings[1].Kick()
		eventually(t, "hanging requests", func() bool { under, _, _ := g.server.state(); return under == 3 })
		_, before, resets := g.server.state()
		begin := time.Now()
		g.reset()
		if took := time.Since(begin); took > patience/2 {
			t.Errorf("the reset waited for %v", took)
		}
		g.offer(1, message(opEcho, 200, 7), 200)
		g.rings[1].Kick()
		if g.rings[1].Wait(20 * time.Millisecond) {
			t.Error("a request of the new driver was answered before those of the old one had ended")
		}
		if _, served, n := g.server.state(); served != before || n != resets {
			t.Errorf("the server was asked %d times and reset %d times meanwhile", served-before, n-resets)
		}
		g.server.release()
		if req, reply := g.take(1); !bytes.Equal(req, reply) {
			t.Error("the new driver's request was not answered")
		}
		if head, _, ok := g.rings[1].Take(); ok {
			t.Errorf("the new driver was given chain %d of the old one", head)
		}
		if _, _, n := g.server.state(); n != resets+1 {
			t.Errorf("the server was reset %d times for one restart", n-resets)
		}
	}
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	if g.server.overlap {
		t.Error("the server was reset while requests were under way")
	}
}

// TestPause: a machine that was only paused gets its replies.
func TestPause(t *testing.T) {
	g := startGuest(t, 0)
	g.offer(1, message(opHang, 100, 1), 100)
	g.rings[1].Kick()
	eventually(t, "a hanging request", func() bool { under, _, _ := g.server.state(); return under == 1 })
	_, _, resets := g.server.state()
	g.fe.Stop(g.rings[0], g.rings[1])
	g.offer(1, message(opEcho, 100, 2), 100) // the guest did so just before
	g.fe.Start(vhosttest.FeatureVersion1, g.rings[0], g.rings[1])
	g.server.release()
	for range 2 {
		if req, reply := g.take(1); !bytes.Equal(req, reply) {
			t.Error("a request from before the pause was not answered")
		}
	}
	if _, _, n := g.server.state(); n != resets {
		t.Error("the server was reset by a pause")
	}
}

// TestHangUp: the device ends with its front-end once the last request has.
func TestHangUp(t *testing.T) {
	g := startGuest(t, 0)
	g.offer(1, message(opHang, 100, 1), 100)
	g.rings[1].Kick()
	eventually(t, "a hanging request", func() bool { under, _, _ := g.server.state(); return under == 1 })
	g.fe.Close()
	select {
	case err := <-g.served:
		t.Fatalf("Serve returned %v while the server was at work", err)
	case <-time.After(20 * time.Millisecond):
	}
	g.server.release()
	select {
	case err := <-g.served:
		if err != nil {
			t.Error(err)
		}
		g.served <- nil
	case <-time.After(patience):
		t.Fatal("Serve does not return")
	}
}
