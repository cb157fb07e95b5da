//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPorts: what a container publishes answers on the host, for as long as the
// container runs.
func TestPorts(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			name := "web-" + c.name
			t.Cleanup(func() { c.exec("rm", "-f", name) })
			c.ok(t, "run", "-d", "--name", name, "-p", "127.0.0.1:0:80", "hello", "sh", "-c", "mkdir /www; echo hello from $(hostname) >/www/index.html; exec httpd -f -p 80 -h /www")
			addr := c.ok(t, "port", name, "80/tcp")
			if !strings.HasPrefix(addr, "127.0.0.1:") {
				t.Fatalf("port: %q", addr)
			}
			if got := get(t, "http://"+addr+"/"); !strings.Contains(got, "hello from") {
				t.Errorf("the page: %q", got)
			}
			if got := c.ok(t, "ps", "--format", "{{.Ports}}", "--filter", "name="+name); got != addr+"->80/tcp" {
				t.Errorf("ps shows %q", got)
			}
			taken := c.fails(t, "port is already allocated", "run", "--rm", "-p", addr+":80", "hello", "true")
			if taken.code != 125 {
				t.Errorf("%s\nwant exit code 125", taken)
			}
			c.ok(t, "restart", "-t", "0", name)
			again := c.ok(t, "port", name, "80/tcp")
			eventually(t, "the page after a restart", func() bool {
				resp, err := http.Get("http://" + again + "/")
				if err != nil {
					return false
				}
				resp.Body.Close()
				return resp.StatusCode == 200
			})
			c.ok(t, "stop", "-t", "0", name)
			if conn, err := net.Dial("tcp", again); err == nil {
				conn.Close()
				t.Error("the port outlived the container")
			}
		})
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	var body string
	eventually(t, url+" answers", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		body = string(b)
		return err == nil
	})
	return body
}

// TestPortHalfClose: each direction of a published connection ends by itself.
func TestPortHalfClose(t *testing.T) {
	h := machine(t)
	c := h.berth()
	t.Cleanup(func() { c.exec("rm", "-f", "count") })
	c.ok(t, "run", "-d", "--name", "count", "-p", "127.0.0.1:0:9", "hello", "nc", "-ll", "-p", "9", "-e", "wc", "-c")
	addr := c.ok(t, "port", "count", "9")
	data := bytes.Repeat([]byte("x"), 1_000_003)
	eventually(t, "the container counts", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(data); err != nil {
			return false // nc does not listen yet
		}
		conn.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(conn)
		return strings.TrimSpace(string(got)) == fmt.Sprint(len(data))
	})
}

// udpEcho is a container's program: busybox has no UDP server.
const udpEcho = `package main

import "net"

func main() {
	l, err := net.ListenPacket("udp", ":7")
	if err != nil {
		panic(err)
	}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			panic(err)
		}
		l.WriteTo(buf[:n], from)
	}
}
`

// TestPortUDP: datagrams go there and back.
func TestPortUDP(t *testing.T) {
	h := machine(t)
	c := h.berth()
	program := buildProgram(t, udpEcho)
	t.Cleanup(func() { c.exec("rm", "-f", "udp") })
	c.ok(t, "run", "-d", "--name", "udp", "-p", "127.0.0.1:0:7/udp", "-v", filepath.Dir(program)+":/prog:ro", "hello", "/prog/"+filepath.Base(program))
	conn, err := net.Dial("udp", c.ok(t, "port", "udp", "7/udp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, size := range []int{1, 1000, 8000} {
		sent := bytes.Repeat([]byte("d"), size)
		eventually(t, "a datagram comes back", func() bool {
			conn.Write(sent)
			conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			buf := make([]byte, 1<<16)
			n, err := conn.Read(buf)
			return err == nil && bytes.Equal(buf[:n], sent)
		})
	}
}

// TestNetworks: containers of a network find each other by name, others do not.
// TestPortSCTP: a port of SCTP is open in the machine, and who publishes it is told
// that it is not on the host.
func TestPortSCTP(t *testing.T) {
	c := machine(t).berth()
	program := built(t, filepath.Join("testdata", "sctp"))
	t.Cleanup(func() { c.exec("rm", "-f", "sctp", "late", "exposing") })
	r := c.exec("run", "-d", "--name", "sctp", "-v", program+":/sctp", "-p", "9999:7/sctp", "-p", "8/sctp", "hello", "/sctp", "listen", "7", "heard")
	if r.code != 0 || !strings.Contains(r.err, "SCTP ports are published inside the machine only") {
		t.Fatalf("%s", r)
	}
	if got := c.ok(t, "port", "sctp", "7/sctp"); got != "0.0.0.0:9999\n[::]:9999" {
		t.Errorf("the port is shown as %q", got)
	}
	if got := c.ok(t, "port", "sctp", "8/sctp"); !strings.HasPrefix(got, "0.0.0.0:") || strings.HasPrefix(got, "0.0.0.0:0") {
		t.Errorf("a port that nobody chose is shown as %q", got)
	}
	gateway := c.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "sctp")
	if got := c.ok(t, "run", "--rm", "-v", program+":/sctp", "hello", "/sctp", "ask", gateway+":9999"); got != "heard" {
		t.Errorf("through the gateway: %q", got)
	}
	c.ok(t, "create", "--name", "late", "-p", "9999:7/sctp", "hello")
	c.fails(t, "Bind for 0.0.0.0:9999 failed: port is already allocated", "start", "late")
	c.ok(t, "rm", "-f", "sctp")
	c.ok(t, "start", "late")
	c.ok(t, "run", "-d", "--name", "exposing", "--expose", "7/sctp", "hello", "sleep", "1000000")
	if got := c.ok(t, "inspect", "-f", "{{json .NetworkSettings.Ports}}", "exposing"); got != `{"7/sctp":null}` {
		t.Errorf("an exposed port is shown as %s", got)
	}
	if got := c.ok(t, "ps", "-f", "name=exposing", "--format", "{{.Ports}}"); got != "7/sctp" {
		t.Errorf("an exposed port is listed as %q", got)
	}
}

// built builds the Go program in a folder and returns its path, which is shared.
func built(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(dir))
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func TestNetworks(t *testing.T) {
	h := machine(t)
	c := h.berth()
	t.Cleanup(func() {
		c.exec("rm", "-f", "server")
		c.exec("network", "rm", "one", "two")
	})
	c.ok(t, "network", "create", "one")
	c.ok(t, "network", "create", "two")
	c.ok(t, "run", "-d", "--name", "server", "--network", "one", "--network-alias", "www", "hello", "sh", "-c", "mkdir /www; echo found >/www/index.html; exec httpd -f -p 80 -h /www")
	for _, name := range []string{"server", "www"} {
		eventually(t, name+" is found", func() bool {
			return strings.Contains(c.exec("run", "--rm", "--network", "one", "hello", "timeout", "5", "wget", "-qO-", "http://"+name+"/").out, "found")
		})
	}
	if r := c.exec("run", "--rm", "--network", "two", "hello", "timeout", "5", "wget", "-qO-", "http://server/"); r.code == 0 {
		t.Errorf("%s\nit is on another network", r)
	}
	c.ok(t, "network", "connect", "two", "server")
	if got := c.ok(t, "run", "--rm", "--network", "two", "hello", "timeout", "5", "wget", "-qO-", "http://server/"); got != "found" {
		t.Errorf("after connect: %q", got)
	}
	c.fails(t, "active endpoints", "network", "rm", "one")
}

// TestVolumes: what is written into a volume stays.
func TestVolumes(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			vol := "vol-" + c.name
			t.Cleanup(func() { c.exec("volume", "rm", "-f", vol) })
			c.ok(t, "run", "--rm", "-v", vol+":/data", "hello", "sh", "-c", "echo kept >/data/file")
			if got := c.ok(t, "run", "--rm", "-v", vol+":/data:ro", "hello", "cat", "/data/file"); got != "kept" {
				t.Errorf("got %q", got)
			}
			if r := c.exec("run", "--rm", "-v", vol+":/data:ro", "hello", "touch", "/data/x"); r.code == 0 {
				t.Errorf("%s\nthe volume is read-only", r)
			}
			if got := c.ok(t, "volume", "ls", "-q", "--filter", "name="+vol); got != vol {
				t.Errorf("volume ls: %q", got)
			}
			c.ok(t, "volume", "rm", vol)
		})
	}
}
