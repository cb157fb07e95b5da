//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// portServer serves one port in a container. The first byte of a connection says
// what follows: d: the server sends bulk bytes and closes; u: the client sends
// until it closes its direction, then the server answers with one byte; e: each
// byte comes back.
const portServer = `package main

import (
	"io"
	"net"
	"os"
)

const bulk = 32 << 20

func main() {
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			continue
		}
		go serve(c)
	}
}

func serve(c net.Conn) {
	defer c.Close()
	order, chunk := []byte{0}, make([]byte, 64<<10)
	io.ReadFull(c, order)
	switch order[0] {
	case 'd':
		for range bulk / len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	case 'u':
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, chunk)
		c.Write(order)
	case 'e':
		io.Copy(c, c)
	}
}
`

const portBulk = 32 << 20

// BenchmarkPorts compares a published port with one that goes through the stock
// user-mode stack's own forward to dockerd, in a machine like Berth's: bytes per
// second each way, round trips, and new connections per second.
func BenchmarkPorts(b *testing.B) {
	h := ownHome(b)
	if err := h.boot(); err != nil {
		b.Fatal(err)
	}
	p := peer(b, h)
	defer p.close()
	p.load(b, h, "hello")
	program := buildProgram(b, portServer)
	serve := func(c cli, publish string) string {
		id := c.ok(b, "create", "-p", publish, "hello", "/server")
		c.ok(b, "cp", program, id+":/server")
		c.ok(b, "start", id)
		return id
	}
	id := serve(h.docker(), "127.0.0.1:0:9000")
	serve(p.docker(), "9000:9000")
	addresses := []string{h.docker().ok(b, "port", id, "9000/tcp"), p.forward(b, 9000)}
	for _, address := range addresses {
		eventually(b, address+" answers", func() bool { return echoOnce(address) == nil })
	}
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	for _, w := range []struct {
		name, unit string
		times      int
		do         func(address string) float64
	}{
		{"port, out of the VM", "MiB/s", 5, func(a string) float64 {
			return (portBulk >> 20) / timed(func() { must(portDown(a)) }).Seconds()
		}},
		{"port, into the VM", "MiB/s", 5, func(a string) float64 {
			return (portBulk >> 20) / timed(func() { must(portUp(a)) }).Seconds()
		}},
		{"port, round trips", "/s", 5, func(a string) float64 {
			const trips = 200
			return trips / timed(func() { must(portTrips(a, trips)) }).Seconds()
		}},
		{"connections", "/s", 5, func(a string) float64 {
			const connections = 100
			return connections / timed(func() {
				for range connections {
					must(echoOnce(a))
				}
			}).Seconds()
		}},
		{"20 at once", "/s", 3, func(a string) float64 {
			const connections = 200
			return connections / timed(func() { must(echoMany(a, connections, 20)) }).Seconds()
		}},
	} {
		var rates [2][]float64
		for range w.times {
			for i, address := range addresses {
				rates[i] = append(rates[i], w.do(address))
			}
		}
		middle := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
		ours, theirs := middle(rates[0]), middle(rates[1])
		fmt.Printf("%-20s Berth %8.1f %s, user-mode forward %8.1f %s: %.1f times more\n", w.name, ours, w.unit, theirs, w.unit, ours/theirs)
		b.ReportMetric(ours/theirs, strings.NewReplacer(" ", "-", ",", "").Replace(w.name)+"-ratio")
	}
	b.ReportMetric(0, "ns/op")
}

// dialPort connects to a portServer and gives it an order.
func dialPort(address, order string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, order); err != nil {
		conn.Close()
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func portDown(address string) error {
	conn, err := dialPort(address, "d")
	if err != nil {
		return err
	}
	defer conn.Close()
	n, err := io.Copy(io.Discard, conn)
	if n != portBulk {
		return fmt.Errorf("got %d bytes of %d: %v", n, portBulk, err)
	}
	return nil
}

func portUp(address string) error {
	conn, err := dialPort(address, "u")
	if err != nil {
		return err
	}
	defer conn.Close()
	chunk := make([]byte, 64<<10)
	for range portBulk / len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			return err
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, chunk[:1])
	return err
}

func portTrips(address string, n int) error {
	conn, err := dialPort(address, "e")
	if err != nil {
		return err
	}
	defer conn.Close()
	one := []byte{1}
	for range n {
		if _, err := conn.Write(one); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return err
		}
	}
	return nil
}

func echoOnce(address string) error { return portTrips(address, 1) }

// echoMany makes n connections, atOnce of them at a time.
func echoMany(address string, n, atOnce int) error {
	var wait sync.WaitGroup
	errs := make(chan error, atOnce)
	for range atOnce {
		wait.Go(func() {
			for range n / atOnce {
				if err := echoOnce(address); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wait.Wait()
	close(errs)
	return <-errs
}
