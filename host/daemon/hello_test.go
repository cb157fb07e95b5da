package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
)

// newHello is a server whose callbacks record nothing.
func newHello() *hello {
	return &hello{
		log:     slog.New(slog.DiscardHandler),
		welcome: func(secret []byte, _ wire.Hello) wire.Welcome { return wire.Welcome{Secret: secret} },
		began:   func(*session) {},
		note:    func(*session, wire.Note) {},
		ended:   func(*session, error) {},
	}
}

// join says hello on a new stream.
func join(t *testing.T, h *hello) (guest net.Conn, ended chan error) {
	t.Helper()
	guest, host := net.Pipe()
	t.Cleanup(func() { guest.Close() })
	ended = make(chan error, 1)
	go func() { ended <- h.stream(host) }()
	guest.SetDeadline(time.Now().Add(patience))
	if err := wire.WriteFrame(guest, wire.Hello{Protocol: wire.Protocol}); err != nil {
		t.Fatal(err)
	}
	return guest, ended
}

// TestOneHelloPerBoot: only a reset lets another in, and it has a new secret.
func TestOneHelloPerBoot(t *testing.T) {
	h := newHello()
	if _, ended := join(t, h); <-ended == nil {
		t.Error("a hello before the first boot was welcomed")
	}
	h.reset()
	var first, second wire.Welcome
	guest, ended := join(t, h)
	if err := wire.ReadFrame(guest, &first); err != nil {
		t.Fatal(err)
	}
	if _, ended := join(t, h); <-ended == nil {
		t.Error("a second hello was welcomed")
	}
	guest.Close()
	<-ended
	if h.secret() != nil {
		t.Error("the secret outlives the stream")
	}
	if _, ended := join(t, h); <-ended == nil {
		t.Error("a hello after the stream's end was welcomed without a reset")
	}
	h.reset()
	guest, ended = join(t, h)
	if err := wire.ReadFrame(guest, &second); err != nil {
		t.Fatal(err)
	}
	if len(first.Secret) != wire.SecretSize || bytes.Equal(first.Secret, second.Secret) {
		t.Error("the secret is not a new one")
	}
	if !bytes.Equal(h.secret(), second.Secret) {
		t.Error("the secret is another than the guest's")
	}
	h.reset()
	<-ended
}

func TestOrders(t *testing.T) {
	h := newHello()
	h.reset()
	guest, ended := join(t, h)
	if err := wire.ReadFrame(guest, new(wire.Welcome)); err != nil {
		t.Fatal(err)
	}
	replies := make(chan wire.Reply)
	go func() {
		for r := range replies {
			var o wire.Order
			if wire.ReadFrame(guest, &o) != nil {
				return
			}
			if r.ID == 0 {
				r.ID = o.ID
			}
			wire.WriteFrame(guest, wire.Note{Reply: &r})
		}
		wire.ReadFrame(guest, new(wire.Order))
		guest.Close()
	}()
	s := h.session()
	go func() { replies <- wire.Reply{} }()
	if err := s.order(t.Context(), wire.Order{Op: wire.OpTime}); err != nil {
		t.Error(err)
	}
	go func() { replies <- wire.Reply{Error: "no"} }()
	if err := s.order(t.Context(), wire.Order{Op: wire.OpTime}); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("a refusal: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	go func() { replies <- wire.Reply{ID: 12345} }() // nobody's
	if err := s.order(ctx, wire.Order{Op: wire.OpTime}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no reply: %v", err)
	}
	close(replies)
	if err := s.order(t.Context(), wire.Order{Op: wire.OpTime}); !errors.Is(err, errNoSession) {
		t.Errorf("the stream broke: %v", err)
	}
	<-ended
	if err := (*session)(nil).order(t.Context(), wire.Order{}); !errors.Is(err, errNoSession) {
		t.Errorf("no session: %v", err)
	}
}

// FuzzHello: whatever a guest sends, the server lives, and nothing of it is
// remembered without bound.
func FuzzHello(f *testing.F) {
	var valid bytes.Buffer
	wire.WriteFrame(&valid, wire.Hello{Protocol: wire.Protocol})
	wire.WriteFrame(&valid, wire.Note{Phase: &wire.Phase{Name: "network"}})
	wire.WriteFrame(&valid, wire.Note{Phase: &wire.Phase{Name: "network", Done: true, Took: -1}})
	wire.WriteFrame(&valid, wire.Note{Engine: &wire.Engine{Running: true, Restarts: 3, Reason: "x"}})
	wire.WriteFrame(&valid, wire.Note{Reply: &wire.Reply{ID: 1}})
	f.Add(valid.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &daemon{log: slog.New(slog.DiscardHandler)}
		d.progress = newProgress(d.log, api.Status{}, func(api.Status) error { return nil })
		d.progress.transition(api.Starting, nil)
		h := newHello()
		h.note = d.note
		h.reset()
		guest, host := net.Pipe()
		go io.Copy(io.Discard, guest)
		go func() {
			guest.Write(data)
			guest.Close()
		}()
		h.stream(host)
		s := d.progress.get()
		if len(s.Start) > maxPhases {
			t.Errorf("%d phases are remembered", len(s.Start))
		}
		if s.Engine != nil && len(s.Engine.Reason) > 1024 {
			t.Errorf("a reason of %d bytes is remembered", len(s.Engine.Reason))
		}
	})
}
