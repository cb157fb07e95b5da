package muxed

import (
	"bufio"
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

const echoPort = 7

// echo accepts on echoPort and returns every byte.
func echo(in *Incoming) {
	if in.Port != echoPort {
		in.Refuse()
		return
	}
	c := in.Accept()
	go func() {
		defer c.Close()
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}()
}

// pair returns a session's two ends after the handshake, which garbage precedes.
func pair(t testing.TB, accept func(*Incoming)) (host, guest *Session) {
	t.Helper()
	a, b := net.Pipe()
	ra, rb := bufio.NewReader(a), bufio.NewReader(b)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		b.Write([]byte("the last words of another kernel" + Magic + "S" + Magic[:3]))
		if err := Greet(context.Background(), rb, b, crand.Reader); err != nil {
			t.Error(err)
		}
	})
	tasks.Go(func() {
		if err := Answer(ra, a, crand.Reader); err != nil {
			t.Error(err)
		}
	})
	tasks.Wait()
	host, guest = NewSession(Host, ra, a, accept), NewSession(Guest, rb, b, accept)
	t.Cleanup(func() {
		host.End(nil)
		guest.End(nil)
		a.Close()
		b.Close()
		host.Wait()
		guest.Wait()
	})
	return host, guest
}

func dial(t testing.TB, s *Session) *Stream {
	t.Helper()
	c, err := s.Dial(t.Context(), echoPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestStreams(t *testing.T) {
	host, guest := pair(t, echo)
	var tasks sync.WaitGroup
	for i := range 40 {
		s := []*Session{host, guest}[i%2]
		tasks.Go(func() {
			c := dial(t, s)
			data := make([]byte, 10+i*40_000)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("stream %d: %d of %d bytes came back: %v", i, len(got), len(data), err)
			}
			if _, err := c.Write([]byte("more")); err == nil {
				t.Error("Write after CloseWrite succeeded")
			}
			c.Close()
		})
	}
	tasks.Wait()
	eventually(t, "streams are left", func() bool { return host.count() == 0 && guest.count() == 0 })
}

func (s *Session) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams) + s.theirs
}

func eventually(t *testing.T, complaint string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(complaint)
		}
	}
}

func TestRefused(t *testing.T) {
	host, _ := pair(t, echo)
	if _, err := host.Dial(t.Context(), 8); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port nobody listens on: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := host.Dial(gone, echoPort); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestDialGivenUp(t *testing.T) {
	pending := make(chan *Incoming, 1)
	host, guest := pair(t, func(in *Incoming) { pending <- in })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-pending
		cancel()
	}()
	if _, err := host.Dial(ctx, echoPort); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v", err)
	}
	eventually(t, "the stream is left", func() bool { return host.count() == 0 && guest.count() == 0 })
}

// TestBackpressure has a reader that does not read: its writer has to wait, all
// other streams must not.
func TestBackpressure(t *testing.T) {
	kept := make(chan *Stream, 1)
	host, _ := pair(t, func(in *Incoming) {
		if in.Port == echoPort {
			echo(in)
			return
		}
		kept <- in.Accept()
	})
	stuck, err := host.Dial(t.Context(), 99)
	if err != nil {
		t.Fatal(err)
	}
	stuck.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := stuck.Write(make([]byte, 4<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n < Window || n > Window+sendBuffer {
		t.Errorf("a stream that nobody reads took %d bytes, %v; want between %d and %d", n, err, Window, Window+sendBuffer)
	}
	c := dial(t, host)
	go c.Write(make([]byte, 1<<20))
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Errorf("another stream: %v", err)
	}
	// What was taken arrives once it is read.
	reader := <-kept
	if err := stuck.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := stuck.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, reader); err != nil || got != int64(n) {
		t.Errorf("%d of %d bytes arrived: %v", got, n, err)
	}
}

func TestDeadlines(t *testing.T) {
	host, _ := pair(t, echo)
	c := dial(t, host)
	late := func(what string) {
		t.Helper()
		var timeout net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	late("in the past")
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	late("ahead")
	c.SetReadDeadline(time.Time{})
	time.AfterFunc(10*time.Millisecond, func() { c.SetReadDeadline(time.Now()) })
	late("moved while reading")
}

func TestClose(t *testing.T) {
	host, guest := pair(t, echo)
	c := dial(t, host)
	woken := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		woken <- err
	}()
	time.Sleep(5 * time.Millisecond)
	c.Close()
	if err := <-woken; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read during Close: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	eventually(t, "the stream is left", func() bool { return host.count() == 0 && guest.count() == 0 })
}

// TestCloseDelivers closes a stream at once after a write, and expects the other
// end to get all of it and then to be told that nobody reads what it sends.
func TestCloseDelivers(t *testing.T) {
	kept := make(chan *Stream, 1)
	host, _ := pair(t, func(in *Incoming) { kept <- in.Accept() })
	c := dial(t, host)
	want := bytes.Repeat([]byte("last words "), 20_000)
	go func() {
		c.Write(want)
		c.Close()
	}()
	peer := <-kept
	if got, err := io.ReadAll(peer); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(want), err)
	}
	eventually(t, "writing to a closed stream goes on", func() bool {
		_, err := peer.Write([]byte("x"))
		return errors.Is(err, syscall.EPIPE)
	})
}

func TestSessionEnds(t *testing.T) {
	host, guest := pair(t, echo)
	c := dial(t, host)
	reason := errors.New("enough")
	host.End(reason)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Write: %v", err)
	}
	if _, err := host.Dial(t.Context(), echoPort); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Dial: %v", err)
	}
	if host.Err() != reason || guest.Err() != nil {
		t.Errorf("the ends: %v and %v", host.Err(), guest.Err())
	}
}

// frames writes frames to a host's session, and returns why it ended.
func frames(t testing.TB, raw []byte, accept func(*Incoming)) error {
	t.Helper()
	s := NewSession(Host, bufio.NewReader(bytes.NewReader(raw)), io.Discard, accept)
	return s.Wait()
}

func TestHostile(t *testing.T) {
	data := func(id uint32, n int) []byte {
		return append(header{kindData, id, uint32(n)}.appendTo(nil), make([]byte, n)...)
	}
	frame := func(k kind, id, value uint32) []byte { return header{k, id, value}.appendTo(nil) }
	flood := func(id uint32, n int) []byte {
		var b []byte
		for range n {
			b = append(b, data(id, maxData)...)
		}
		return b
	}
	opens := func(n uint32) []byte {
		var b []byte
		for i := range n {
			b = append(b, frame(kindOpen, 2*i+1, 1)...)
		}
		return b
	}
	open := frame(kindOpen, 1, echoPort)
	for _, c := range []struct {
		name string
		raw  [][]byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"half a frame", [][]byte{open[:4]}, io.ErrUnexpectedEOF},
		{"opened", [][]byte{open}, io.EOF},
		{"unknown kind", [][]byte{frame(99, 1, 0)}, ErrProtocol},
		{"no kind", [][]byte{frame(0, 1, 0)}, ErrProtocol},
		{"no data", [][]byte{open, frame(kindData, 1, 0)}, ErrProtocol},
		{"huge data", [][]byte{open, frame(kindData, 1, maxData+1)}, ErrProtocol},
		{"opened twice", [][]byte{open, open}, ErrProtocol},
		{"opened downwards", [][]byte{frame(kindOpen, 3, 7), open}, ErrProtocol},
		{"opened in our name", [][]byte{frame(kindOpen, 2, 7)}, ErrProtocol},
		{"never opened", [][]byte{data(5, 1)}, ErrProtocol},
		{"never opened by us", [][]byte{frame(kindAccept, 2, 0)}, ErrProtocol},
		{"accepts its own", [][]byte{open, frame(kindAccept, 1, 0)}, ErrProtocol},
		{"within the window", [][]byte{open, flood(1, Window/maxData)}, io.EOF},
		{"over the window", [][]byte{open, flood(1, Window/maxData), data(1, 1)}, ErrProtocol},
		{"endless credit", [][]byte{open, frame(kindCredit, 1, 1<<31)}, ErrProtocol},
		{"credit for nothing", [][]byte{open, frame(kindCredit, 1, 1)}, ErrProtocol},
		{"no credit", [][]byte{open, frame(kindCredit, 1, 0)}, ErrProtocol},
		{"ended twice", [][]byte{open, frame(kindEnd, 1, 0), frame(kindEnd, 1, 0)}, ErrProtocol},
		{"stopped twice", [][]byte{open, frame(kindStop, 1, 0), frame(kindStop, 1, 0)}, ErrProtocol},
		{"data after the end", [][]byte{open, frame(kindEnd, 1, 0), data(1, 1)}, ErrProtocol},
		{"data after a reset", [][]byte{open, frame(kindReset, 1, 0), data(1, 1)}, io.EOF},
		{"as many streams as may be", [][]byte{opens(maxStreams)}, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := frames(t, bytes.Join(c.raw, nil), func(in *Incoming) { in.Accept() }); !errors.Is(err, c.want) {
				t.Errorf("the session ended with %v, want %v", err, c.want)
			}
		})
	}
}

// TestRefusesTooMany opens streams to an end that cannot answer.
func TestRefusesTooMany(t *testing.T) {
	var raw []byte
	for i := range uint32(maxStreams + maxRefused + 10) {
		raw = header{kindOpen, 2*i + 1, 1}.appendTo(raw)
	}
	block, w := io.Pipe()
	defer block.Close()
	s := NewSession(Host, bufio.NewReader(bytes.NewReader(raw)), w, func(in *Incoming) { in.Accept() })
	<-s.Done()
	if !errors.Is(s.Err(), ErrProtocol) {
		t.Errorf("the session ended with %v", s.Err())
	}
	block.Close()
	s.Wait()
}

// FuzzSession feeds a host whatever a guest may send, with streams of both sides.
func FuzzSession(f *testing.F) {
	f.Add(header{kindOpen, 1, echoPort}.appendTo(nil))
	f.Add(append(header{kindData, 1, 3}.appendTo(header{kindOpen, 1, echoPort}.appendTo(nil)), "abc"...))
	f.Add(header{kindAccept, 2, 0}.appendTo(header{kindCredit, 1, 4}.appendTo(nil)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		hold, release := io.Pipe() // the guest's bytes end only once ours were sent
		s := NewSession(Host, bufio.NewReader(io.MultiReader(bytes.NewReader(raw), hold)), io.Discard, echo)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if c, err := s.Dial(ctx, 1); err == nil {
			c.Write([]byte("hello"))
			c.Close()
		}
		s.mu.Lock()
		for _, st := range s.streams {
			if len(st.in) > Window {
				t.Errorf("stream %d holds %d bytes", st.id, len(st.in))
			}
		}
		s.mu.Unlock()
		release.Close()
		s.End(io.EOF)
		s.Wait()
	})
}

// FuzzAnswer feeds the host's handshake, which must not begin a session without
// having heard its own number.
func FuzzAnswer(f *testing.F) {
	f.Add(message('S', nonce{1}))
	f.Add(append(message('S', nonce{1}), message('G', nonce{2})...))
	f.Add([]byte("\xff\xff\xffberth-streams-1\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := Answer(bufio.NewReader(bytes.NewReader(raw)), io.Discard, crand.Reader); err == nil {
			t.Error("the handshake succeeded without its second half")
		}
	})
}

// TestHandshakeAfterHandshake has a guest that restarts in the middle of one.
func TestHandshakeAfterHandshake(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	answered := make(chan error, 1)
	go func() { answered <- Answer(bufio.NewReader(a), a, crand.Reader) }()
	first := nonce{1}
	b.SetDeadline(time.Now().Add(20 * time.Second))
	for range 3 { // one answer for all
		if _, err := b.Write(message('S', first)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, len(message('A', first, first)))); err != nil {
			t.Fatal(err)
		}
		first[0]++ // another kernel
	}
	if err := Greet(t.Context(), bufio.NewReader(b), b, crand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}
