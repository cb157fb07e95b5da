//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
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

// What the environment of a process says that is a client of BenchmarkPorts.
const (
	portWork    = "BERTH_TEST_PORT_WORK"
	portAddress = "BERTH_TEST_PORT_ADDRESS"
)

// portWorks are what clients do. Each returns how much of it was done.
var portWorks = map[string]func(address string) (float64, error){
	"out of the VM": func(a string) (float64, error) { return portBulk >> 20, portDown(a) },
	"into the VM":   func(a string) (float64, error) { return portBulk >> 20, portUp(a) },
	"round trips":   func(a string) (float64, error) { return 500, portTrips(a, 500) },
	"connections": func(a string) (float64, error) {
		for range 100 {
			if err := echoOnce(a); err != nil {
				return 0, err
			}
		}
		return 100, nil
	},
	"20 at once": func(a string) (float64, error) { return 200, echoMany(a, 200, 20) },
}

// portClient does a work and prints how much of it was done in a second.
func portClient(work, address string) int {
	var done float64
	var err error
	took := timed(func() { done, err = portWorks[work](address) })
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(done / took.Seconds())
	return 0
}

// portRate has a client do a work. It is a process of its own, as clients are: one
// that shared a process with one of the two ways into a VM would favour it.
func portRate(b *testing.B, work, address string) float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), portWork+"="+work, portAddress+"="+address)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %s", work, out)
	}
	rate, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatalf("%s: %v", work, err)
	}
	return rate
}

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
	for _, w := range []struct {
		work, unit string
		times      int
	}{
		{"out of the VM", "MiB/s", 5}, {"into the VM", "MiB/s", 5}, {"round trips", "/s", 7}, {"connections", "/s", 7}, {"20 at once", "/s", 5},
	} {
		var rates [2][]float64
		for range w.times {
			for i, address := range addresses {
				rates[i] = append(rates[i], portRate(b, w.work, address))
			}
		}
		middle := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
		ours, theirs := middle(rates[0]), middle(rates[1])
		fmt.Printf("port, %-15s Berth %8.1f %s, user-mode forward %8.1f %s: %.2f times more\n", w.work, ours, w.unit, theirs, w.unit, ours/theirs)
		b.ReportMetric(ours/theirs, strings.ReplaceAll(w.work, " ", "-")+"-ratio")
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
