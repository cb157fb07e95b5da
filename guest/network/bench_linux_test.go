package network

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/berthvm/berth/guest/network/internal/nstest"
)

// BenchmarkContainer measures what a container waits for: a namespace, an
// endpoint on the default bridge, and the release of both. What the kernel and
// the Manager do in the background is not counted.
func BenchmarkContainer(b *testing.B) {
	nstest.Require(b)
	dir := b.TempDir()
	m, err := Open(ctx, Options{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), NetNSDir: filepath.Join(dir, "netns")})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	if err := m.Prepare(ctx); err != nil {
		b.Fatal(err)
	}
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, part := range []string{"all", "ns", "attach", "release"} {
		b.Run(part, func(b *testing.B) {
			timed := func(p string) {
				if part == "all" || part == p {
					b.StartTimer()
				} else {
					b.StopTimer()
				}
			}
			for i := range b.N {
				id := fmt.Sprintf("c%d", i)
				timed("ns")
				path, err := m.NewNS(ctx, id)
				must(err)
				timed("attach")
				_, err = m.Attach(ctx, AttachRequest{ContainerID: id, Network: Bridge, NetNS: path})
				must(err)
				timed("release")
				must(m.Release(ctx, id))
				b.StopTimer()
				m.Settle()
			}
		})
	}
}
