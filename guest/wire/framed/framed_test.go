package framed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"time"
)

// pair returns a connection over TCP, which buffers, wrapped at both ends.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := Listener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = New(dialed), accepted.(*Conn)
	t.Cleanup(func() { a.Close(); b.Close() })
	a.SetDeadline(time.Now().Add(20 * time.Second))
	b.SetDeadline(time.Now().Add(20 * time.Second))
	return a, b
}

func TestHalfClose(t *testing.T) {
	a, b := pair(t)
	data := make([]byte, 5*MaxFrame+17)
	rand.NewChaCha8([32]byte{1}).Read(data)
	go func() { // the echo answers only once the other direction has ended
		got, _ := io.ReadAll(b)
		b.Write(got)
		b.CloseWrite()
	}()
	if n, err := a.Write(data); n != len(data) || err != nil {
		t.Fatalf("Write() = %d, %v", n, err)
	}
	for range 2 { // the second changes nothing
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(a)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, %v, want the %d sent", len(got), err, len(data))
	}
	if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read after the end = %d, %v, want EOF again", n, err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after CloseWrite = %v, want %v", err, net.ErrClosed)
	}
}

func TestClosedWhole(t *testing.T) {
	a, b := pair(t)
	a.Write([]byte("last words"))
	a.Close()
	if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
		t.Errorf("read %q, %v, want the words and a plain end", got, err)
	}
}

func TestDeadlineLosesNothing(t *testing.T) {
	a, b := pair(t)
	for _, part := range [][]byte{{0, 0}, {0, 3, 'a'}, {'b', 'c'}} { // a frame in pieces
		b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := b.Read(make([]byte, 8)); n > 1 || (n == 0 && !errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Fatalf("Read() = %d, %v before all has come", n, err)
		}
		a.Conn.Write(part)
	}
	b.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 2)
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "bc" {
		t.Errorf("read %q, %v after the deadlines, want the rest", got, err)
	}
}

// choke is a carrier that takes only so many bytes for each write, then fails.
type choke struct {
	net.Conn
	takes  []int
	sent   bytes.Buffer
	closed bool
}

func (c *choke) Write(p []byte) (int, error) {
	if len(c.takes) == 0 {
		return c.sent.Write(p)
	}
	n := min(c.takes[0], len(p))
	c.takes = c.takes[1:]
	c.sent.Write(p[:n])
	if n < len(p) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

func (c *choke) Close() error { c.closed = true; return nil }

func TestWriteGoesOnAfterDeadline(t *testing.T) {
	for _, takes := range [][]int{{0}, {2}, {4}, {6}, {2, 1, 0, 3}, {1, 1, 1, 1, 1, 1, 1}} {
		carrier := &choke{takes: takes}
		c, data := New(carrier), []byte("hello, world")
		for rest := data; len(rest) > 0; {
			n, err := c.Write(rest)
			if err == nil && n != len(rest) {
				t.Fatalf("takes %v: Write() = %d of %d without an error", takes, n, len(rest))
			}
			rest = rest[n:]
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(New(stream{&carrier.sent}))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("takes %v: the other end reads %q, %v", takes, got, err)
		}
	}
}

func TestCloseWriteOfBrokenFrame(t *testing.T) {
	carrier := &choke{takes: []int{6}}
	c := New(carrier)
	if n, err := c.Write([]byte("hello")); n != 2 || err == nil {
		t.Fatalf("Write() = %d, %v", n, err)
	}
	if err := c.CloseWrite(); err == nil || !carrier.closed {
		t.Errorf("CloseWrite() = %v, closed %t: the other end would wait for ever", err, carrier.closed)
	}
}

// stream is a carrier to read from.
type stream struct{ io.Reader }

func (stream) Write(p []byte) (int, error)      { return len(p), nil }
func (stream) Close() error                     { return nil }
func (stream) LocalAddr() net.Addr              { return nil }
func (stream) RemoteAddr() net.Addr             { return nil }
func (stream) SetDeadline(time.Time) error      { return nil }
func (stream) SetReadDeadline(time.Time) error  { return nil }
func (stream) SetWriteDeadline(time.Time) error { return nil }

func TestBadInput(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want error
	}{
		{"nothing", "", nil},
		{"end", "\x00\x00\x00\x00", nil},
		{"after the end", "\x00\x00\x00\x00more", nil},
		{"half a header", "\x00\x00", io.ErrUnexpectedEOF},
		{"half a frame", "\x00\x00\x00\x05ab", io.ErrUnexpectedEOF},
		{"no frame", "HTTP/1.1 200 OK\r\n", ErrFormat},
		{"too long", string(binary.BigEndian.AppendUint32(nil, MaxFrame+1)), ErrFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := io.ReadAll(New(stream{bytes.NewReader([]byte(tt.in))})); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestRequested(t *testing.T) {
	for cmdline, want := range map[string]bool{
		"": false, "quiet " + Param + "\n": true, "x" + Param: false, Param + "x": false, "berth.streams=raw": false,
	} {
		if got := Requested(cmdline); got != want {
			t.Errorf("Requested(%q) = %t", cmdline, got)
		}
	}
}

// FuzzRead reads the same bytes whole and one at a time: no panic, same result,
// and what was read is no more than was sent.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03abc\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x01\x00\x00abc"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := io.ReadAll(New(stream{bytes.NewReader(in)}))
		bytewise, err2 := io.ReadAll(New(stream{iotest.OneByteReader(bytes.NewReader(in))}))
		if !bytes.Equal(whole, bytewise) || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %q, %v; bytewise: %q, %v", whole, err, bytewise, err2)
		}
		if len(whole) > len(in) {
			t.Fatalf("%d bytes out of %d", len(whole), len(in))
		}
	})
}
