package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/sshd"
	"github.com/berthvm/berth/guest/wire"
)

// servers are the listeners and what serves them.
type servers struct {
	log     *slog.Logger
	http    []*http.Server
	closers []net.Listener
	wg      sync.WaitGroup
	cancel  context.CancelFunc // ends what is not HTTP
	failed  chan error
}

// listen opens the ports. Nothing is accepted from anyone but the host.
func listen(cfg config, w wire.Welcome, p *parts, api http.Handler, idle *idler) (_ *servers, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &servers{log: cfg.log, cancel: cancel, failed: make(chan error, 4)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.Remove(cfg.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	local, err := net.Listen("unix", cfg.socket())
	if err != nil {
		return nil, fmt.Errorf("listen for the Docker API: %w", err)
	}
	if err := os.Chmod(cfg.socket(), 0o600); err != nil {
		local.Close()
		return nil, err
	}
	api = idle.serve(api)
	s.serve(local, api)
	if cfg.native {
		return s, nil
	}
	for port, h := range map[uint32]http.Handler{wire.PortDocker: api, wire.PortControl: control(p.engine)} {
		l, err := cfg.way.Listen(port)
		if err != nil {
			return nil, err
		}
		s.serve(l, h)
	}
	portal, err := cfg.way.Listen(wire.PortPortal)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, portal)
	s.wg.Go(func() { _ = p.ports.Serve(portal, idle.use) })
	return s, s.serveSSH(ctx, cfg, w)
}

// serveSSH serves shells in the machine, if the host has sent keys.
func (s *servers) serveSSH(ctx context.Context, cfg config, w wire.Welcome) error {
	if w.SSH.HostKey == "" {
		return nil
	}
	l, err := cfg.way.Listen(wire.PortSSH)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		err := sshd.Serve(ctx, l, sshd.Options{HostKey: w.SSH.HostKey, AuthorizedKey: w.SSH.AuthorizedKey, Log: s.log,
			Env: []string{"DOCKER_HOST=unix:///run/berth/docker.sock"}})
		if err != nil && ctx.Err() == nil {
			s.log.Error("no shells in the machine: the SSH server ended", "error", err)
		}
	})
	return nil
}

func (s *servers) serve(l net.Listener, h http.Handler) {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // BuildKit's clients
	srv := &http.Server{Handler: h, Protocols: &protocols, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	s.http = append(s.http, srv)
	s.wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			select {
			case s.failed <- fmt.Errorf("serve %v: %w", l.Addr(), err):
			default:
			}
		}
	})
}

// close ends all servers and their connections.
func (s *servers) close() {
	s.cancel()
	for _, l := range s.closers {
		_ = l.Close()
	}
	for _, srv := range s.http {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		_ = srv.Shutdown(ctx)
		cancel()
		_ = srv.Close()
	}
	ended := make(chan struct{})
	go func() { s.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience): // a published connection of a host that does not end it
	}
}

// patience bounds the end of connections at shutdown: the machine must go down.
const patience = time.Second

// control serves the control API: GET /v1/health, /v1/spans and /v1/usage.
func control(e *engine.Engine) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct {
			Time       time.Time `json:"time"`
			Containers int       `json:"containers"`
			Running    int       `json:"running"`
		}{time.Now(), e.Count().All, e.Count().Running})
	})
	mux.HandleFunc("GET /v1/usage", func(w http.ResponseWriter, _ *http.Request) {
		u, err := usage()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, u)
	})
	mux.HandleFunc("GET /v1/spans", func(w http.ResponseWriter, _ *http.Request) { answer(w, e.Spans.All()) })
	return mux
}
