package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/relay"
	"github.com/berthvm/berth/guest/wire"
)

const (
	// answerTime bounds the host's answer: it only has to listen.
	answerTime = 15 * time.Second
	// connectTime bounds connecting to a container, which is one hop away.
	connectTime = 10 * time.Second
	// askAgain is how often a host that has gone is asked for its successor, giveUp for
	// how long.
	askAgain, giveUp = 250 * time.Millisecond, time.Minute
)

// Publisher is safe for concurrent use.
type Publisher struct {
	secret  []byte
	connect func(ctx context.Context) (net.Conn, error)
	log     *slog.Logger

	mu    sync.Mutex
	last  uint64
	ports map[uint64]*Port
}

// New returns a Publisher that asks with the boot's secret. connect opens a
// stream to wire.PortPublishHost.
func New(secret []byte, connect func(ctx context.Context) (net.Conn, error), log *slog.Logger) *Publisher {
	return &Publisher{secret: secret, connect: connect, log: log, ports: map[uint64]*Port{}}
}

// Port is one listener on the host. Close takes it away. When the host is another
// one all of a sudden, since the machine was saved and goes on, it is asked again.
type Port struct {
	publisher *Publisher
	id        uint64
	network   string // "tcp" or "udp"
	only      string // "6" for IPv6 only, or nothing
	target    func() netip.AddrPort
	addr      netip.AddrPort
	done      chan struct{} // closed by Close
	telling   sync.Mutex    // one Moved at a time

	stream net.Conn // publisher.mu guards it, once the port is open
}

// Open listens on the host's address ("0.0.0.0:8080"; port 0 lets the host choose)
// for connections, each of which leads to what target says then. network is "tcp" or
// "udp", or "tcp6" or "udp6" where "[::]" is no IPv4 address too. The host listens
// when Open returns.
func (p *Publisher) Open(ctx context.Context, network, address string, target func() netip.AddrPort) (*Port, error) {
	base, six := strings.CutSuffix(network, "6")
	if base != "tcp" && base != "udp" {
		return nil, fmt.Errorf("cannot publish a port: protocol %q cannot be forwarded from the host", network)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	stream, err := p.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot publish a port: the machine's host does not answer: %w", err)
	}
	port := &Port{publisher: p, network: base, target: target, stream: stream, done: make(chan struct{})}
	if six {
		port.only = "6"
	}
	p.mu.Lock()
	p.last++
	port.id = p.last
	p.ports[port.id] = port
	p.mu.Unlock()

	if port.addr, err = port.ask(ctx, stream, address); err != nil {
		port.Close()
		return nil, err
	}
	go port.keep(stream)
	return port, nil
}

// ask has the host listen at an address for as long as the stream is open.
func (port *Port) ask(ctx context.Context, stream net.Conn, address string) (addr netip.AddrPort, err error) {
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
	}()
	if _, err := stream.Write(port.publisher.secret); err != nil {
		return addr, err
	}
	req := wire.PublishRequest{ID: port.id, Network: port.network + port.only, Address: address, PublishTarget: port.direct()}
	if err := wire.WriteFrame(stream, req); err != nil {
		return addr, err
	}
	var reply wire.PublishReply
	if err := wire.ReadFrame(stream, &reply); err != nil {
		return addr, fmt.Errorf("cannot publish a port: the machine's host does not answer: %w", err)
	}
	if reply.Error != "" {
		return addr, errors.New(reply.Error)
	}
	if addr, err = netip.ParseAddrPort(reply.Address); err != nil {
		return addr, fmt.Errorf("cannot publish a port: the machine's host answered with %q", reply.Address)
	}
	return addr, nil
}

// keep asks again whenever the stream breaks, until Close.
func (port *Port) keep(stream net.Conn) {
	for {
		stream.Read(make([]byte, 1)) // the host has nothing to say: this is the end
		lost := time.Now()
		for {
			select {
			case <-port.done:
				return
			case <-time.After(askAgain):
			}
			err := port.reopen()
			if err == nil {
				break
			}
			if time.Since(lost) > giveUp {
				port.publisher.log.Error("a published port is lost", "address", port.addr, "error", err)
				return
			}
		}
		port.publisher.mu.Lock()
		stream = port.stream
		port.publisher.mu.Unlock()
		port.Moved() // or it did while the host was asked
	}
}

// reopen has the host listen where it did.
func (port *Port) reopen() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	stream, err := port.publisher.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := port.ask(ctx, stream, port.addr.String()); err != nil {
		stream.Close()
		return err
	}
	port.publisher.mu.Lock()
	defer port.publisher.mu.Unlock()
	port.stream.Close()
	port.stream = stream
	if port.publisher.ports[port.id] != port { // closed meanwhile
		stream.Close()
	}
	return nil
}

// direct is the target as the host may reach it without a portal stream.
func (port *Port) direct() (t wire.PublishTarget) {
	if to := port.target(); port.network == "tcp" && to.Addr().Is4() {
		t.Target = to.String()
	}
	return t
}

// Moved tells the host that the target may have changed.
func (port *Port) Moved() {
	port.telling.Lock()
	defer port.telling.Unlock()
	port.publisher.mu.Lock()
	stream := port.stream
	port.publisher.mu.Unlock()
	stream.SetWriteDeadline(time.Now().Add(answerTime))
	if err := wire.WriteFrame(stream, port.direct()); err != nil { // a stream that comes after it says so itself
		port.publisher.log.Debug("the host does not learn where a published port leads", "port", port.addr, "error", err)
	}
}

// Addr is where the host listens.
func (port *Port) Addr() netip.AddrPort { return port.addr }

// Close ends the listening. Connections that are open go on.
func (port *Port) Close() error {
	p := port.publisher
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ports[port.id] == port {
		delete(p.ports, port.id)
		close(port.done)
	}
	return port.stream.Close()
}

// Serve carries the connections that arrive at l, on wire.PortPortal, until l is
// closed; it returns when all have ended. It calls used when one begins and when it
// ends.
func (p *Publisher) Serve(l net.Listener, used func()) error {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		work.Go(func() {
			defer conn.Close()
			used()
			defer used()
			if err := p.carry(conn); err != nil {
				p.log.Debug("a published connection ended", "error", err)
			}
		})
	}
}

func (p *Publisher) carry(conn net.Conn) error {
	conn.SetReadDeadline(time.Now().Add(answerTime))
	var req wire.PortalRequest
	if err := wire.ReadFrame(conn, &req); err != nil {
		return err
	}
	if req.ID == 0 {
		return nil
	}
	conn.SetReadDeadline(time.Time{})
	p.mu.Lock()
	port := p.ports[req.ID]
	p.mu.Unlock()
	if port == nil {
		return fmt.Errorf("connection from %s to a port that is no longer published", req.Peer)
	}
	to := port.target()
	if !to.IsValid() {
		return fmt.Errorf("connection from %s to a container that is on no network", req.Peer)
	}
	target, err := net.DialTimeout(port.network, to.String(), connectTime)
	if err != nil {
		return err
	}
	defer target.Close()
	if port.network == "udp" {
		return flow(conn, target)
	}
	return relay.Join(conn, target)
}

// flow carries datagrams until nothing has come for wire.FlowIdle.
func flow(stream, target net.Conn) error {
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, wire.MaxDatagram)
		for {
			target.SetReadDeadline(time.Now().Add(wire.FlowIdle))
			n, err := target.Read(buf)
			if err == nil {
				err = wire.WriteDatagram(stream, buf[:n])
			}
			if err != nil {
				stream.Close()
				done <- err
				return
			}
		}
	}()
	buf := make([]byte, wire.MaxDatagram)
	for {
		n, err := wire.ReadDatagram(stream, buf)
		if err != nil {
			target.Close()
			return <-done
		}
		target.SetReadDeadline(time.Now().Add(wire.FlowIdle))
		// A container that does not listen answers with ICMP: the datagram is lost, as
		// datagrams are.
		target.Write(buf[:n])
	}
}
