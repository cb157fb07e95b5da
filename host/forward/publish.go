package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// Bounds on what the guest may publish.
const (
	maxPublished = 4096 // listeners
	maxFlows     = 1024 // UDP clients of one listener
)

// Ports serves wire.PortPublishHost: it listens on the host for the guest's
// containers. The zero value is ready; it is safe for concurrent use.
type Ports struct {
	Log *slog.Logger // may be nil

	mu   sync.Mutex
	open map[*published]bool
}

// published is one listener.
type published struct {
	network string
	addr    string
}

// List returns what is published now, as "tcp 0.0.0.0:8080".
func (p *Ports) List() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]string, 0, len(p.open))
	for o := range p.open {
		list = append(list, o.network+" "+o.addr)
	}
	return list
}

// Portal opens a stream to the guest's wire.PortPortal.
type Portal = func(ctx context.Context) (net.Conn, error)

// Direct connects to a container by TCP. An error that is errors.ErrUnsupported
// sends the connection through the portal.
type Direct = func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

// Serve takes the guest's wishes from l until l is closed and every listener and
// connection has ended, or ctx is done. secret returns what a stream must begin
// with now; direct may be nil.
func (p *Ports) Serve(ctx context.Context, l net.Listener, secret func() []byte, portal Portal, direct Direct) error {
	way := &ways{portal: portal, direct: direct}
	defer way.telling.Wait()
	return serve(ctx, l, func(ctx context.Context, c net.Conn) {
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		if err := checkSecret(c, secret()); err != nil {
			p.log().Debug("refused the guest a published port", "error", err)
			return
		}
		var req wire.PublishRequest
		if err := wire.ReadFrame(io.LimitReader(c, maxRequest), &req); err != nil {
			p.log().Debug("refused the guest a published port", "error", err)
			return
		}
		if err := p.publish(ctx, c, req, way); err != nil {
			p.log().Debug("a published port ended", "address", req.Address, "error", err)
		}
	})
}

func (p *Ports) log() *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}

// publish listens, replies, and forwards until the guest closes c.
func (p *Ports) publish(ctx context.Context, c net.Conn, req wire.PublishRequest, way *ways) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	entry := &published{network: req.Network}
	if !p.add(entry) {
		return refuse(c, fmt.Errorf("cannot publish %s: %d ports are published already", req.Address, maxPublished))
	}
	defer p.remove(entry)
	t := &target{ways: way, id: req.ID}
	t.set(req.PublishTarget)
	run, addr, err := listenFor(ctx, req, t)
	if err != nil {
		return refuse(c, err)
	}
	p.mu.Lock()
	entry.addr = addr
	p.mu.Unlock()
	c.SetDeadline(time.Time{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.follow(c)
		cancel()
	}()
	if err = wire.WriteFrame(c, wire.PublishReply{Address: addr}); err != nil {
		cancel()
	}
	run()
	c.Close()
	<-ended
	return err
}

func refuse(c net.Conn, err error) error {
	return errors.Join(err, wire.WriteFrame(c, wire.PublishReply{Error: err.Error()}))
}

func (p *Ports) add(o *published) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) >= maxPublished {
		return false
	}
	if p.open == nil {
		p.open = map[*published]bool{}
	}
	p.open[o] = true
	return true
}

func (p *Ports) remove(o *published) {
	p.mu.Lock()
	delete(p.open, o)
	p.mu.Unlock()
}

// listenFor opens the listener that req asks for. run forwards until ctx is done.
func listenFor(ctx context.Context, req wire.PublishRequest, t *target) (run func(), addr string, err error) {
	at, err := publishAddr(req.Address)
	if err != nil {
		return nil, "", err
	}
	network := req.Network
	if at.Addr().Is4() {
		network += "4" // not the IPv6 wildcard too
	}
	switch req.Network {
	case "tcp", "tcp6":
		l, err := net.Listen(network, at.String())
		if err != nil {
			return nil, "", bindError(at, err)
		}
		return func() { serveTCP(ctx, l, t) }, l.Addr().String(), nil
	case "udp", "udp6":
		l, err := net.ListenPacket(network, at.String())
		if err != nil {
			return nil, "", bindError(at, err)
		}
		return func() { serveUDP(ctx, l, t.portalStream) }, l.LocalAddr().String(), nil
	}
	return nil, "", fmt.Errorf("cannot publish a port: protocol %q is not forwarded", req.Network)
}

// publishAddr checks an address: the one place that decides where the host
// listens for the guest.
func publishAddr(s string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(s)
	if err != nil || at.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("cannot publish a port: %q is not an address with a port", s)
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// bindError says in docker's words why a listener could not be opened.
func bindError(at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("Bind for %s failed: port is already allocated", at)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot publish %s: this user of the host may not listen on ports below 1024: publish another port, or allow it (Linux: sysctl net.ipv4.ip_unprivileged_port_start)", at)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot publish %s: the host has no such address", at)
	}
	return fmt.Errorf("cannot publish %s: %w", at, err)
}

func serveTCP(ctx context.Context, l net.Listener, t *target) {
	serve(ctx, l, func(ctx context.Context, c net.Conn) {
		dial, cancel := context.WithTimeout(ctx, dialTimeout)
		far, direct, err := t.connect(dial, c.RemoteAddr().String())
		cancel()
		if err != nil {
			return
		}
		if direct {
			t.inUse(ctx)
			defer t.inUse(ctx)
		}
		Splice(ctx, c, far)
	})
}

// serveUDP gives each client's address a stream of its own.
func serveUDP(ctx context.Context, l net.PacketConn, open func(context.Context, string) (net.Conn, error)) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	flows := &flows{listener: l, byPeer: map[string]*flow{}}
	defer flows.wait.Wait()
	buf := make([]byte, wire.MaxDatagram)
	for {
		n, from, err := l.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier reply
		}
		f := flows.get(ctx, from, open)
		if f == nil {
			continue
		}
		select {
		case f.out <- append([]byte(nil), buf[:n]...):
		default: // the container does not keep up: datagrams are lost
		}
	}
}

// flows are the clients of one UDP listener.
type flows struct {
	listener net.PacketConn
	wait     sync.WaitGroup

	mu     sync.Mutex
	byPeer map[string]*flow
}

// flow is one client. Its stream is opened by its first datagram.
type flow struct{ out chan []byte }

func (fs *flows) get(ctx context.Context, from net.Addr, open func(context.Context, string) (net.Conn, error)) *flow {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	peer := from.String()
	if f := fs.byPeer[peer]; f != nil {
		return f
	}
	if len(fs.byPeer) >= maxFlows {
		return nil
	}
	f := &flow{out: make(chan []byte, 64)}
	fs.byPeer[peer] = f
	fs.wait.Go(func() {
		defer func() {
			fs.mu.Lock()
			delete(fs.byPeer, peer)
			fs.mu.Unlock()
		}()
		dial, cancel := context.WithTimeout(ctx, dialTimeout)
		stream, err := open(dial, peer)
		cancel()
		if err == nil {
			f.run(ctx, stream, fs.listener, from)
		}
	})
	return f
}

// run carries datagrams until nothing has come for wire.FlowIdle.
func (f *flow) run(ctx context.Context, stream net.Conn, l net.PacketConn, to net.Addr) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		buf := make([]byte, wire.MaxDatagram)
		for {
			stream.SetReadDeadline(time.Now().Add(wire.FlowIdle))
			n, err := wire.ReadDatagram(stream, buf)
			if err != nil {
				return
			}
			l.WriteTo(buf[:n], to)
		}
	}()
	for {
		select {
		case p := <-f.out:
			stream.SetReadDeadline(time.Now().Add(wire.FlowIdle))
			if wire.WriteDatagram(stream, p) != nil {
				cancel()
			}
		case <-ctx.Done():
			stream.Close()
			<-back
			return
		}
	}
}
