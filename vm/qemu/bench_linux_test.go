package qemu

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berthvm/berth/vm/internal/testguest"
)

// BenchmarkVsock measures a stream into the guest beside a unix socket of the
// host, both to a program that returns every byte: the round trip of one byte,
// and 64 MiB there and back. Medians of interleaved repetitions.
func BenchmarkVsock(b *testing.B) {
	m, _ := realMachine(b, New(Options{}), guestConfig(b))
	local := echoSocket(b)
	paths := []func() net.Conn{
		func() net.Conn {
			c, err := m.Dial(b.Context(), testguest.PortEcho)
			if err != nil {
				b.Fatal(err)
			}
			return c
		},
		func() net.Conn {
			c, err := net.Dial("unix", local)
			if err != nil {
				b.Fatal(err)
			}
			return c
		},
	}
	var trips, rates [2][]float64
	for range 5 {
		for i, dial := range paths {
			trips[i] = append(trips[i], roundTrip(b, dial()))
			rates[i] = append(rates[i], throughput(b, dial()))
		}
	}
	middle := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	b.ReportMetric(middle(trips[0]), "vsock-roundtrip-us")
	b.ReportMetric(middle(trips[0])/middle(trips[1]), "roundtrip/unix")
	b.ReportMetric(middle(rates[0]), "vsock-echo-MiB/s")
	b.ReportMetric(middle(rates[0])/middle(rates[1]), "echo/unix")
	b.ReportMetric(0, "ns/op")
}

// echoSocket returns the address of a program that returns every byte.
func echoSocket(b *testing.B) string {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// roundTrip returns the microseconds one byte takes there and back.
func roundTrip(b *testing.B, c net.Conn) float64 {
	defer c.Close()
	const trips = 200
	one := []byte{1}
	var begin time.Time
	for i := range trips + 10 {
		if i == 10 {
			begin = time.Now() // warm
		}
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
	return float64(time.Since(begin).Microseconds()) / trips
}

// throughput returns the MiB/s of data sent and, at once, received again.
func throughput(b *testing.B, c net.Conn) float64 {
	defer c.Close()
	const size = 64 << 20
	data := make([]byte, 1<<20)
	rand.Read(data)
	begin := time.Now()
	go func() {
		for range size / len(data) {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got := make([]byte, len(data))
	for range size / len(data) {
		if _, err := io.ReadFull(c, got); err != nil {
			b.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			b.Fatal("the stream was changed on its way")
		}
	}
	return size / (1 << 20) / time.Since(begin).Seconds()
}
