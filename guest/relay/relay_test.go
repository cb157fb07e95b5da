package relay

import (
	"io"
	"net"
	"testing"
	"time"
)

// pair is a connection and its other end.
func pair(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestJoin: each direction ends by itself, and a reset of one side is the end of
// both.
func TestJoin(t *testing.T) {
	client, a := pair(t)
	b, server := pair(t)
	joined := make(chan error, 1)
	go func() { joined <- Join(a, b) }()
	client.Write([]byte("question"))
	client.CloseWrite()
	if got, err := io.ReadAll(server); string(got) != "question" || err != nil {
		t.Errorf("the server read %q, %v", got, err)
	}
	server.Write([]byte("answer"))
	server.Close()
	if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
		t.Errorf("the client read %q, %v", got, err)
	}
	if err := <-joined; err != nil {
		t.Error(err)
	}

	client, a = pair(t)
	b, server = pair(t)
	go func() { joined <- Join(a, b) }()
	server.SetLinger(0)
	server.Close()
	if err := <-joined; err == nil {
		t.Error("a reset is no error")
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the other side goes on after a reset")
	}
	if x, y := net.Pipe(); Join(x, y) == nil {
		t.Error("pipes, which have no half-close, were joined")
	}
}
