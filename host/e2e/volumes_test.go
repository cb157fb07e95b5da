//go:build linux

package e2e

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// TestSilentServer: a file server that takes connections and says nothing holds up
// only who wants its volume, and only for a while; one that is not there is told of
// at once. No password is told to anybody.
func TestSilentServer(t *testing.T) {
	c := machine(t).docker()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan net.Conn, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(asked)
				return
			}
			asked <- conn
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c.ok(t, "volume", "create", "--opt", "type=nfs", "--opt", "device=:/exported", "--opt", "o=addr=host.docker.internal,vers=4.2,port="+port, "silent")
	c.ok(t, "volume", "create", "--opt", "type=cifs", "--opt", "device=//host.docker.internal/share", "--opt", "o=username=u,password=secret,port=1", "absent")
	t.Cleanup(func() { c.exec("volume", "rm", "-f", "silent", "absent") })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	waiting := c.command(ctx, "run", "--rm", "-v", "silent:/data", "hello", "true")
	var said strings.Builder
	waiting.Stderr = &said
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	select {
	case conn := <-asked:
		conns = append(conns, conn)
	case <-time.After(patience):
		t.Fatal("nobody asks the server")
	}
	if r := c.fails(t, "failed to mount local volume", "run", "--rm", "-v", "absent:/data", "hello", "true"); strings.Contains(r.err, "secret") {
		t.Errorf("%s", r)
	}
	if got := c.ok(t, "run", "--rm", "-v", "other:/data", "hello", "echo", "fine"); got != "fine" {
		t.Errorf("%q", got)
	}
	if got := c.ok(t, "volume", "ls", "-q"); !strings.Contains(got, "silent") || !strings.Contains(got, "other") {
		t.Errorf("volumes: %q", got)
	}
	c.ok(t, "volume", "rm", "other")
	if err := waiting.Wait(); err == nil || !strings.Contains(said.String(), "failed to mount local volume") || !strings.Contains(said.String(), "did not answer") {
		t.Errorf("run: %v, %s", err, said.String())
	}
	l.Close()
	for conn := range asked {
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "nobody waits for the server any more", func() bool { return c.exec("volume", "rm", "silent").code == 0 })
}
