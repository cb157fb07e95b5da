package sshd

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Bounds on what clients can hold.
const (
	handshakeTimeout = 15 * time.Second
	maxConns         = 64
	maxChannels      = 32 // of one connection
	forwardTimeout   = 15 * time.Second
)

// Options configures a server.
type Options struct {
	HostKey       string   // private key, PEM
	AuthorizedKey string   // one line of an authorized_keys file
	Shell         string   // default /bin/sh
	Dir           string   // where sessions begin. Default /
	Env           []string // of sessions, besides PATH, HOME, USER, SHELL and what the client sets
	Log           *slog.Logger
}

// server is one call of Serve.
type server struct {
	opts   Options
	log    *slog.Logger
	config *ssh.ServerConfig
	slots  chan struct{}
}

// Serve serves SSH on l until ctx is done or l fails. It closes l, ends all
// sessions and waits for them. The error is nil when ctx is done or l is closed.
func Serve(ctx context.Context, l net.Listener, opts Options) error {
	defer l.Close()
	s, err := newServer(opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("cannot accept SSH connections: %w", err)
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.log.Warn("too many SSH connections", "limit", maxConns)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			s.serve(ctx, c)
		})
	}
}

func newServer(opts Options) (*server, error) {
	signer, err := ssh.ParsePrivateKey([]byte(opts.HostKey))
	if err != nil {
		return nil, fmt.Errorf("cannot use the SSH host key: %w", err)
	}
	authorized, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(opts.AuthorizedKey))
	if err != nil {
		return nil, fmt.Errorf("cannot use the authorized SSH key: %w", err)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("cannot use the authorized SSH key: there is more than one line")
	}
	if opts.Shell == "" {
		opts.Shell = "/bin/sh"
	}
	if opts.Dir == "" {
		opts.Dir = "/"
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	want := authorized.Marshal()
	config := &ssh.ServerConfig{
		MaxAuthTries:  3,
		ServerVersion: "SSH-2.0-berth",
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if subtle.ConstantTimeCompare(key.Marshal(), want) != 1 {
				return nil, errors.New("the key is not authorized")
			}
			return &ssh.Permissions{}, nil
		},
	}
	config.AddHostKey(signer)
	return &server{opts: opts, log: opts.Log, config: config, slots: make(chan struct{}, maxConns)}, nil
}

// serve runs one connection to its end.
func (s *server) serve(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	conn, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		s.log.Info("refused an SSH connection", "error", err)
		return
	}
	c.SetDeadline(time.Time{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	defer cancel()
	wg.Go(func() { ssh.DiscardRequests(requests) })
	open := make(chan struct{}, maxChannels)
	for nc := range channels {
		handle := map[string]func(context.Context, ssh.NewChannel){
			"session": s.session, "direct-tcpip": s.forward,
		}[nc.ChannelType()]
		if handle == nil {
			nc.Reject(ssh.UnknownChannelType, "not supported")
			continue
		}
		select {
		case open <- struct{}{}:
		default:
			nc.Reject(ssh.ResourceShortage, "too many channels")
			continue
		}
		wg.Go(func() {
			defer func() { <-open }()
			handle(ctx, nc)
		})
	}
}

// forward connects the client to an address that the machine reaches.
func (s *server) forward(ctx context.Context, nc ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil || to.Port > 65535 {
		nc.Reject(ssh.ConnectionFailed, "invalid request")
		return
	}
	d := net.Dialer{Timeout: forwardTimeout}
	far, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer far.Close()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	defer context.AfterFunc(ctx, func() { far.Close(); ch.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(requests) })
	wg.Go(func() {
		io.Copy(far, ch)
		far.(*net.TCPConn).CloseWrite()
	})
	if _, err := io.Copy(ch, far); err == nil {
		ch.CloseWrite()
	} else {
		ch.Close()
	}
	// The client ends its direction, or the connection.
	wg.Wait()
}
