package elevated

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// fake makes machines that only note their orders.
type fake struct {
	mu      sync.Mutex
	systems []*fakeSystem
	refuse  error
}

type fakeSystem struct {
	design compute.Design
	mu     sync.Mutex
	orders []compute.Order
	events chan compute.Event
	closed bool
}

func (f *fake) Probe(context.Context) (string, error) { return "fake 1", f.refuse }

func (f *fake) Create(_ context.Context, d compute.Design) (compute.System, error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &fakeSystem{design: d, events: make(chan compute.Event, 4)}
	f.systems = append(f.systems, s)
	return s, nil
}

func (s *fakeSystem) RuntimeID() string            { return "runtime-" + s.design.ID }
func (s *fakeSystem) Events() <-chan compute.Event { return s.events }
func (s *fakeSystem) Do(_ context.Context, o compute.Order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, o)
	switch o.Op {
	case compute.OpTerminate:
		s.events <- compute.Event{Exited: true, Forced: true}
	case compute.OpSave:
		return vm.ErrNotRunning
	}
	return nil
}

func (s *fakeSystem) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.events)
	}
	return nil
}

func (s *fakeSystem) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// memory is a listener of connections in memory.
type memory struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (m memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}
func (m memory) Close() error { close(m.closed); return nil }
func (memory) Addr() net.Addr { return nil }

func (m memory) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case m.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

const (
	id   = "0e1d2c3b-4a59-6877-8695-a4b3c2d1e0f0"
	user = "S-1-5-21-7"
)

func serve(t *testing.T, f *fake) memory {
	t.Helper()
	l := memory{make(chan net.Conn), make(chan struct{})}
	s := &Server{Log: slog.New(slog.DiscardHandler), Identify: func(net.Conn) (Caller, error) {
		return Caller{SID: user, Service: f, Close: func() {}}, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		l.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

func fine() error { return nil }

func design() compute.Design {
	return compute.Design{ID: id, Name: "dev", CPUs: 1, MemoryMiB: 256, Kernel: filepath.Join(os.TempDir(), "vmlinux"), User: "S-1-5-18"}
}

func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s never came", what)
		}
	}
}

func TestMachine(t *testing.T) {
	f := &fake{}
	c := client{serve(t, f).dial, fine}
	if version, err := c.Probe(t.Context()); version != "fake 1" || err != nil {
		t.Errorf("Probe() = %q, %v", version, err)
	}
	s, err := c.Create(t.Context(), design())
	if err != nil {
		t.Fatal(err)
	}
	if s.RuntimeID() != "runtime-"+id {
		t.Errorf("runtime id %q", s.RuntimeID())
	}
	system := f.systems[0]
	if system.design.User != user {
		t.Errorf("the machine is for %q, as the client says, not for who the client is", system.design.User)
	}
	path := filepath.Join(os.TempDir(), "state")
	if err := s.Do(t.Context(), compute.Order{Op: compute.OpSave, Path: path}); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Do(save) = %v", err)
	}
	if err := s.Do(t.Context(), compute.Order{Op: "format"}); err == nil {
		t.Error("an unknown order is carried out")
	}
	if err := s.Do(t.Context(), compute.Order{Op: compute.OpTerminate}); err != nil {
		t.Error(err)
	}
	if e := <-s.Events(); e != (compute.Event{Exited: true, Forced: true}) {
		t.Errorf("event %+v", e)
	}
	s.Close()
	s.Close()
	soon(t, "the machine's end", system.isClosed)
	if err := s.Do(t.Context(), compute.Order{Op: compute.OpStart}); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Do after Close = %v", err)
	}
	if _, open := <-s.Events(); open {
		t.Error("events after Close")
	}
}

// TestClientDies: the machine goes with the connection.
func TestClientDies(t *testing.T) {
	f := &fake{}
	s, err := client{serve(t, f).dial, fine}.Create(t.Context(), design())
	if err != nil {
		t.Fatal(err)
	}
	s.(*line).conn.Close()
	soon(t, "the machine's end", f.systems[0].isClosed)
}

func TestServiceDies(t *testing.T) {
	l := memory{make(chan net.Conn, 1), make(chan struct{})}
	c := client{l.dial, fine}
	go func() {
		far := <-l.conns
		var r Request
		wire.ReadFrame(far, &r)
		far.Close()
	}()
	if _, err := c.Create(t.Context(), design()); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Create = %v", err)
	}
}

func TestRefused(t *testing.T) {
	f := &fake{}
	l := serve(t, f)
	bad := design()
	bad.Console = `\\.\pipe\lsass`
	if _, err := (client{l.dial, fine}).Create(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "console") {
		t.Errorf("Create with a foreign pipe: %v", err)
	}
	s, err := client{l.dial, fine}.Create(t.Context(), design())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := design()
	if _, err := s.(*line).ask(t.Context(), Request{Create: &d}); err == nil {
		t.Error("a connection gets two machines")
	}
	for range maxMachines - 1 {
		s, err := client{l.dial, fine}.Create(t.Context(), design())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if _, err := (client{l.dial, fine}).Create(t.Context(), design()); err == nil {
		t.Errorf("more than %d machines", maxMachines)
	}
	f.refuse = compute.ErrElevation
	if _, err := (client{l.dial, fine}).Probe(t.Context()); !errors.Is(err, vm.ErrUnavailable) || err.Error() != compute.ErrElevation.Error() {
		t.Errorf("Probe() = %v", err)
	}
}

func TestAccess(t *testing.T) {
	if got := access(user); !strings.Contains(got, ";;;"+user+")") || strings.Contains(got, "WD") {
		t.Error(got)
	}
	if clientAccess&4 != 0 {
		t.Error("the client asks for the right to make a pipe")
	}
}

// FuzzServe feeds a connection. Whatever comes, the service must neither panic nor
// make a machine that is not valid or not the caller's.
func FuzzServe(f *testing.F) {
	frame := func(r Request) []byte {
		var b bytes.Buffer
		wire.WriteFrame(&b, r)
		return b.Bytes()
	}
	d := design()
	f.Add(frame(Request{ID: 1, Probe: true}))
	f.Add(append(frame(Request{ID: 1, Create: &d}), frame(Request{ID: 2, Order: &compute.Order{Op: compute.OpStart}})...))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		service := &fake{}
		near, far := net.Pipe()
		s := &Server{Log: slog.New(slog.DiscardHandler), Identify: func(net.Conn) (Caller, error) {
			return Caller{SID: user, Service: service, Close: func() {}}, nil
		}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.handle(context.Background(), far)
		}()
		go func() {
			for {
				var r Reply
				if err := wire.ReadFrame(near, &r); err != nil {
					return
				}
				if _, err := json.Marshal(r); err != nil {
					t.Error(err)
				}
			}
		}()
		near.Write(data)
		near.Close()
		<-done
		for _, system := range service.systems {
			if system.design.User != user || system.design.Validate() != nil {
				t.Errorf("a machine of the design %+v", system.design)
			}
			if !system.isClosed() {
				t.Error("a machine is left")
			}
		}
	})
}
