package virtiofs

import (
	"testing"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

// BenchmarkRequests measures one request after the other, without what a server does:
// a look-up's size, a write's and a read's.
func BenchmarkRequests(b *testing.B) {
	for _, size := range []struct {
		name     string
		in, room int
	}{{"small", 60, 160}, {"write", maxMessage, 24}, {"read", 80, maxMessage}} {
		b.Run(size.name, func(b *testing.B) {
			g := startGuest(b, vhosttest.FeatureEventIdx|vhosttest.FeatureIndirect)
			at := g.fe.Alloc(size.in + size.room)
			copy(g.fe.Memory()[at:], message(opEcho, size.in, 1))
			b.SetBytes(int64(size.in + size.room))
			b.ReportAllocs()
			for b.Loop() {
				g.rings[1].Offer(vhosttest.Buffer{Off: at, Len: uint32(size.in)}, vhosttest.Buffer{Off: at + uint64(size.in), Len: uint32(size.room), Write: true})
				g.rings[1].Kick()
				if !g.rings[1].Wait(patience) {
					b.Fatal("no reply")
				}
				g.rings[1].Take()
			}
		})
	}
}
