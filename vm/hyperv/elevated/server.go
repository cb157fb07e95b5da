package elevated

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// writeTimeout bounds what a client may take to read a frame.
const writeTimeout = 10 * time.Second

// Caller is who is at the other end of a connection.
type Caller struct {
	SID     string
	Service compute.Service // makes machines for the caller
	Close   func()
}

// Server is the service.
type Server struct {
	// Identify says who has sent the first frame on a connection.
	Identify func(net.Conn) (Caller, error)
	Log      *slog.Logger

	mu       sync.Mutex // guards what follows
	machines int
	conns    int
	idle     time.Time // since when there is no connection
}

// Idle is for how long nobody has been connected.
func (s *Server) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns > 0 || s.idle.IsZero() {
		return 0
	}
	return time.Since(s.idle)
}

// count counts connections.
func (s *Server) count(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns += change
	s.idle = time.Now()
}

// Serve answers connections until l is closed, and returns when all have ended. ctx
// ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	s.count(0)
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		s.count(+1)
		conns.Go(func() {
			defer s.count(-1)
			if err := s.handle(ctx, c); err != nil && ctx.Err() == nil {
				s.Log.Warn("a connection has ended", "error", err)
			}
		})
	}
}

// session is one connection.
type session struct {
	server *Server
	conn   net.Conn
	caller Caller
	tasks  sync.WaitGroup

	writing sync.Mutex // one frame at a time

	mu      sync.Mutex // guards what follows
	claimed bool       // a machine was asked for
	system  compute.System
}

// handle answers one connection until it ends.
func (s *Server) handle(ctx context.Context, c net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	var first Request
	if err := wire.ReadFrame(c, &first); err != nil {
		return nil // who only looks is no news
	}
	caller, err := s.Identify(c)
	if err != nil {
		return fmt.Errorf("cannot tell who the client is: %w", err)
	}
	n := &session{server: s, conn: c, caller: caller}
	defer func() {
		cancel()
		n.end()
		caller.Close()
	}()
	for r := first; ; {
		if err := n.take(ctx, r); err != nil {
			return err
		}
		r = Request{}
		if err := wire.ReadFrame(c, &r); err != nil {
			return nil // it has hung up
		}
	}
}

// end ends the machine.
func (n *session) end() {
	n.conn.Close()
	n.mu.Lock()
	n.claimed = true // no more
	system := n.system
	n.mu.Unlock()
	if system != nil {
		if err := system.Close(); err != nil {
			n.server.Log.Warn("a machine has left something behind", "error", err)
		}
	}
	n.tasks.Wait()
}

// take carries out a request beside the others. Its error is for a client that does
// not speak the protocol.
func (n *session) take(ctx context.Context, r Request) error {
	reply := Reply{ID: r.ID}
	var work func() Reply
	switch {
	case r.ID == 0:
		return errors.New("a request has no ID")
	case r.Probe && r.Create == nil && r.Order == nil:
		work = func() Reply {
			version, err := n.caller.Service.Probe(ctx)
			reply.Version = version
			return reply.fail(err)
		}
	case r.Create != nil && !r.Probe && r.Order == nil:
		work = func() Reply {
			system, err := n.create(ctx, *r.Create)
			if err == nil {
				reply.RuntimeID = system.RuntimeID()
			}
			return reply.fail(err)
		}
	case r.Order != nil && !r.Probe && r.Create == nil:
		work = func() Reply { return reply.fail(n.order(ctx, *r.Order)) }
	default:
		return errors.New("a request asks for nothing, or for several things")
	}
	n.tasks.Go(func() { n.send(work()) })
	return nil
}

// send sends a frame, or hangs up.
func (n *session) send(r Reply) {
	n.writing.Lock()
	defer n.writing.Unlock()
	n.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := wire.WriteFrame(n.conn, r); err != nil {
		n.conn.Close()
	}
}

// create makes the session's one machine.
func (n *session) create(ctx context.Context, d compute.Design) (compute.System, error) {
	d.User = n.caller.SID
	if err := d.Validate(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	claimed := n.claimed
	n.claimed = true
	n.mu.Unlock()
	if claimed {
		return nil, errors.New("this connection has its machine already")
	}
	free, err := n.server.room()
	if err != nil {
		return nil, err
	}
	system, err := n.caller.Service.Create(ctx, d)
	if err != nil {
		free()
		return nil, err
	}
	n.server.Log.Info("machine made", "name", d.Name, "user", d.User, "id", d.ID)
	n.mu.Lock()
	n.system = system
	n.mu.Unlock()
	if ctx.Err() != nil { // end has not seen it
		system.Close()
	}
	n.tasks.Go(func() {
		defer free()
		for e := range system.Events() {
			n.send(Reply{Event: &e})
		}
	})
	return system, nil
}

// room takes one of the places for machines.
func (s *Server) room() (free func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machines == maxMachines {
		return nil, fmt.Errorf("%d virtual machines run already", maxMachines)
	}
	s.machines++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.machines--
	}, nil
}

// order passes an order on.
func (n *session) order(ctx context.Context, o compute.Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	n.mu.Lock()
	system := n.system
	n.mu.Unlock()
	if system == nil {
		return vm.ErrNotRunning
	}
	return system.Do(ctx, o)
}
