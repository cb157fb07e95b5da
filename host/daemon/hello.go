package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
)

// helloTimeout bounds a guest's first frame once it has connected, and each
// frame we write to it.
const helloTimeout = 30 * time.Second

// hello serves PortHelloHost: one stream per boot. It is safe for concurrent
// use; its callbacks are called one at a time, and must not block for long.
type hello struct {
	log     *slog.Logger
	welcome func(secret []byte, h wire.Hello) wire.Welcome
	began   func(*session)            // the Welcome is sent
	note    func(*session, wire.Note) // of a live session
	ended   func(*session, error)

	mu      sync.Mutex // guards all below
	open    bool       // a hello will be accepted
	resumed bool       // also one of a boot that another daemon knew
	current *session
}

// session is one boot of the guest.
type session struct {
	conn   net.Conn
	hello  wire.Hello
	secret []byte
	done   chan struct{} // closed when the stream has ended
	news   chan struct{} // holds one; gets one with every note

	mu      sync.Mutex // guards all below, and the writing of frames
	nextID  uint64
	waiting map[uint64]chan wire.Reply
}

var errNoSession = errors.New("the guest has no control stream")

// serve accepts streams until l is closed, and returns when every one has ended.
func (h *hello) serve(l net.Listener) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		streams.Go(func() {
			if err := h.stream(conn); err != nil {
				h.log.Warn("a hello was refused", "error", err)
			}
		})
	}
}

// stream takes one stream from its hello to its end. The error is about the
// time before the Welcome.
func (h *hello) stream(conn net.Conn) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(helloTimeout))
	var first wire.Hello
	if err := wire.ReadFrame(conn, &first); err != nil {
		return fmt.Errorf("no hello: %w", err)
	}
	s, err := h.claim(conn, first)
	if err != nil {
		// It is told nothing: who asks twice is not PID 1.
		return err
	}
	welcome := h.welcome(s.secret, first)
	if err := wire.WriteFrame(conn, welcome); err != nil {
		return errors.Join(fmt.Errorf("cannot answer the hello: %w", err), h.end(s, err))
	}
	conn.SetDeadline(time.Time{})
	h.began(s)
	for {
		var n wire.Note
		if err := wire.ReadFrame(conn, &n); err != nil {
			return h.end(s, err)
		}
		if n.Reply != nil {
			s.deliver(*n.Reply)
			continue
		}
		h.note(s, n)
	}
}

func (h *hello) claim(conn net.Conn, first wire.Hello) (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open {
		return nil, errors.New("this boot has said hello already")
	}
	secret := first.Secret
	switch {
	case len(secret) == 0:
		secret = make([]byte, wire.SecretSize)
		rand.Read(secret)
	case !h.resumed || len(secret) != wire.SecretSize:
		return nil, errors.New("it goes on from a state that was not restored")
	}
	s := &session{conn: conn, hello: first, secret: secret,
		done: make(chan struct{}), news: make(chan struct{}, 1), waiting: map[uint64]chan wire.Reply{}}
	h.open, h.resumed, h.current = false, false, s
	return s, nil
}

func (h *hello) end(s *session, why error) error {
	h.mu.Lock()
	if h.current == s {
		h.current = nil
	}
	h.mu.Unlock()
	close(s.done)
	h.ended(s, why)
	return nil
}

// reset begins a new boot: the old stream ends, and one hello is accepted. It
// does not block.
func (h *hello) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current != nil {
		h.current.conn.Close() // its reader ends the session
	}
	h.open, h.resumed, h.current = true, false, nil
}

// resume accepts the hello of a guest that goes on from its saved state, too.
func (h *hello) resume() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.resumed = true
}

// awaited reports whether the current boot has not said hello yet.
func (h *hello) awaited() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// session is the current boot's, nil before its hello.
func (h *hello) session() *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// secret is the current boot's; nil, which matches nothing, without one.
func (h *hello) secret() []byte {
	if s := h.session(); s != nil {
		return s.secret
	}
	return nil
}

// order sends an order and waits for its reply. A nil session fails.
func (s *session) order(ctx context.Context, o wire.Order) error {
	if s == nil {
		return errNoSession
	}
	reply := make(chan wire.Reply, 1)
	s.mu.Lock()
	s.nextID++
	o.ID = s.nextID
	s.waiting[o.ID] = reply
	s.conn.SetWriteDeadline(time.Now().Add(helloTimeout))
	err := wire.WriteFrame(s.conn, o)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, o.ID)
		s.mu.Unlock()
	}()
	if err != nil {
		return fmt.Errorf("cannot reach the guest: %w", err)
	}
	select {
	case r := <-reply:
		if r.Error != "" {
			return fmt.Errorf("the guest refused %s: %s", o.Op, r.Error)
		}
		return nil
	case <-s.done:
		return errNoSession
	case <-ctx.Done():
		return fmt.Errorf("the guest did not answer to %s: %w", o.Op, ctx.Err())
	}
}

func (s *session) deliver(r wire.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.waiting[r.ID]; c != nil {
		delete(s.waiting, r.ID)
		c <- r // holds one, and is sent one
	}
}

// checkHello says in one line why guest and host cannot work together.
func checkHello(h wire.Hello, arch string) error {
	switch {
	case h.Protocol != wire.Protocol:
		return fmt.Errorf("the guest image speaks protocol %d and this berth %d: they do not belong together: "+
			"reinstall Berth, or rebuild its image", h.Protocol, wire.Protocol)
	case arch != "" && h.Arch != arch:
		return fmt.Errorf("the guest image is for %s, the machine is %s: reinstall Berth", h.Arch, arch)
	}
	return nil
}

// engineOf bounds what a guest says about its engine.
func engineOf(e wire.Engine) *api.Engine {
	if len(e.Reason) > 1024 {
		e.Reason = e.Reason[:1024]
	}
	return &api.Engine{Running: e.Running, Restarts: e.Restarts, Reason: e.Reason}
}
