package forward

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// Bounds on what the guest may ask for.
const (
	handshakeTimeout = 10 * time.Second
	maxRequest       = 4 << 10 // bytes
	maxLoopback      = 1024    // connections
	connectTimeout   = 10 * time.Second
)

// Loopback serves wire.PortLoopbackHost: it connects programs of the guest's that
// know the boot's secret to the host's loopback, and to nothing else.
type Loopback struct {
	Log *slog.Logger // may be nil
}

// Serve takes the guest's connections to l until l is closed and every connection
// has ended, or ctx is done. secret returns what a stream must begin with now;
// nil matches nothing.
func (lb Loopback) Serve(ctx context.Context, l net.Listener, secret func() []byte) error {
	log := lb.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	slots := make(chan struct{}, maxLoopback)
	return serve(ctx, l, func(ctx context.Context, c net.Conn) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			log.Warn("the guest has too many connections to the host's loopback", "limit", maxLoopback)
			return
		}
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		far, err := answer(ctx, c, secret())
		if err != nil {
			log.Debug("refused the guest a connection to the host's loopback", "error", err)
			return
		}
		c.SetDeadline(time.Time{})
		Splice(ctx, c, far)
	})
}

var errSecret = errors.New("the stream does not begin with the secret")

// checkSecret reads the preamble of a guest's stream.
func checkSecret(c io.Reader, secret []byte) error {
	got := make([]byte, wire.SecretSize)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if len(secret) != wire.SecretSize || subtle.ConstantTimeCompare(got, secret) != 1 {
		return errSecret
	}
	return nil
}

// answer reads a request, connects, and replies. Who does not know the secret
// gets no reply.
func answer(ctx context.Context, c net.Conn, secret []byte) (net.Conn, error) {
	if err := checkSecret(c, secret); err != nil {
		return nil, err
	}
	addrs, err := readRequest(c)
	var far net.Conn
	if err == nil {
		far, err = connect(ctx, addrs)
	}
	var reply wire.DialReply
	if err != nil {
		reply.Error = err.Error()
	}
	if werr := wire.WriteFrame(c, reply); werr != nil && err == nil {
		far.Close()
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return far, nil
}

// readRequest reads a wire.DialRequest and returns the addresses to try.
func readRequest(r io.Reader) ([]netip.AddrPort, error) {
	var req wire.DialRequest
	if err := wire.ReadFrame(io.LimitReader(r, maxRequest), &req); err != nil {
		return nil, fmt.Errorf("invalid request: %w", err)
	}
	return loopbackAddrs(req)
}

// loopbackAddrs checks a request: the one place that decides where the guest may
// connect to.
func loopbackAddrs(req wire.DialRequest) ([]netip.AddrPort, error) {
	if req.Network != "tcp" && req.Network != "tcp4" && req.Network != "tcp6" {
		return nil, fmt.Errorf("network %q is not forwarded", req.Network)
	}
	host, portText, err := net.SplitHostPort(req.Address)
	if err != nil {
		return nil, fmt.Errorf("invalid address %q", req.Address)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("invalid port in %q", req.Address)
	}
	candidates := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if name := strings.ToLower(strings.TrimSuffix(host, ".")); name != "localhost" && !strings.HasSuffix(name, ".localhost") {
		ip, err := netip.ParseAddr(host)
		if err != nil || ip.Zone() != "" || !ip.Unmap().IsLoopback() {
			return nil, fmt.Errorf("%q is not an address of the host's loopback", req.Address)
		}
		candidates = []netip.Addr{ip.Unmap()}
	}
	var out []netip.AddrPort
	for _, ip := range candidates {
		if (req.Network == "tcp4" && !ip.Is4()) || (req.Network == "tcp6" && !ip.Is6()) {
			continue
		}
		out = append(out, netip.AddrPortFrom(ip, uint16(port)))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q is not of the network %s", req.Address, req.Network)
	}
	return out, nil
}

func connect(ctx context.Context, addrs []netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var d net.Dialer
	var first error
	for _, a := range addrs {
		c, err := d.DialContext(ctx, "tcp", a.String())
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}
