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

// BenchmarkStreams measures streams into the guest, by vsock and by serial port,
// beside a unix socket of the host, all to a program that returns every byte: the
// round trip of one byte, and 64 MiB there and back. Medians of interleaved
// repetitions.
func BenchmarkStreams(b *testing.B) {
	cfg := guestConfig(b)
	into := func(o Options) func() net.Conn {
		m, _ := realMachine(b, New(o), cfg)
		return func() net.Conn {
			c, err := m.Dial(b.Context(), testguest.PortEcho)
			if err != nil {
				b.Fatal(err)
			}
			return c
		}
	}
	local := echoSocket(b)
	names := []string{"vsock", "serial", "unix"}
	paths := []func() net.Conn{into(Options{}), into(Options{Serial: true}), func() net.Conn {
		c, err := net.Dial("unix", local)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}}
	trips, rates := make([][]float64, len(paths)), make([][]float64, len(paths))
	for range 5 {
		for i, dial := range paths {
			trips[i] = append(trips[i], roundTrip(b, dial()))
			rates[i] = append(rates[i], throughput(b, dial()))
		}
	}
	middle := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	for i, name := range names {
		b.ReportMetric(middle(trips[i]), name+"-roundtrip-us")
		b.ReportMetric(middle(rates[i]), name+"-echo-MiB/s")
	}
	b.ReportMetric(middle(trips[0])/middle(trips[2]), "vsock-roundtrip/unix")
	b.ReportMetric(middle(rates[0])/middle(rates[2]), "vsock-echo/unix")
	b.ReportMetric(middle(trips[1])/middle(trips[0]), "serial-roundtrip/vsock")
	b.ReportMetric(middle(rates[1])/middle(rates[0]), "serial-echo/vsock")
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
