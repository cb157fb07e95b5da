package hostdial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

var secret = bytes.Repeat([]byte{7}, wire.SecretSize)

// host plays the host's side of one stream.
func host(t *testing.T, reply wire.DialReply, serve func(net.Conn)) (*Dialer, <-chan wire.DialRequest) {
	t.Helper()
	asked := make(chan wire.DialRequest, 1)
	return &Dialer{Secret: secret, Connect: func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			got := make([]byte, wire.SecretSize)
			if _, err := io.ReadFull(theirs, got); err != nil || !bytes.Equal(got, secret) {
				return
			}
			var req wire.DialRequest
			if wire.ReadFrame(theirs, &req) != nil {
				return
			}
			asked <- req
			if wire.WriteFrame(theirs, reply) == nil && serve != nil {
				serve(theirs)
			}
		}()
		return ours, nil
	}}, asked
}

func TestDialHost(t *testing.T) {
	d, asked := host(t, wire.DialReply{}, func(c net.Conn) { io.WriteString(c, "hello") })
	conn, err := d.DialContext(t.Context(), "tcp", "localhost:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-asked; got != (wire.DialRequest{Network: "tcp", Address: "localhost:5000"}) {
		t.Errorf("request = %+v", got)
	}
	body, err := io.ReadAll(conn)
	if err != nil || string(body) != "hello" {
		t.Errorf("read %q, %v", body, err)
	}
}

func TestDialHostRefused(t *testing.T) {
	d, _ := host(t, wire.DialReply{Error: "connection refused"}, nil)
	_, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error = %v", err)
	}
}

func TestDialHostCancelled(t *testing.T) {
	d := &Dialer{Secret: secret, Connect: func(context.Context) (net.Conn, error) {
		ours, _ := net.Pipe() // nobody reads
		return ours, nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.DialContext(ctx, "tcp", "localhost:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
}

func TestDialDirect(t *testing.T) {
	direct := errors.New("direct")
	d := &Dialer{Direct: func(context.Context, string, string) (net.Conn, error) { return nil, direct }}
	if _, err := d.DialContext(t.Context(), "tcp", "registry.example:443"); !errors.Is(err, direct) {
		t.Errorf("error = %v", err)
	}
}

func TestIsLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"localhost:5000": true, "localhost": true, "LOCALHOST.:1": true, "reg.localhost:80": true,
		"127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true, "::1": true, "[::ffff:127.0.0.1]:1": true,
		"128.0.0.1:1": false, "localhost.example:1": false, "[fe80::1]:1": false, "": false, "127.0.0.1.example": false,
	} {
		if got := IsLoopback(addr); got != want {
			t.Errorf("IsLoopback(%q) = %v, want %v", addr, got, want)
		}
	}
}
