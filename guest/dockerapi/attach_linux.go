package dockerapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/moby/term"
	"golang.org/x/net/websocket"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/stdio"
)

// peer is a client that is attached to a process's streams.
type peer interface {
	io.ReadWriter
	// interrupt makes a Read return.
	interrupt()
	// ignore reads and drops what the client sends, to notice when it goes.
	ignore()
	// finish ends the connection so that the client gets everything.
	finish()
}

func (s *Server) containerAttach(c *call) error {
	return s.attachTo(c, c.flag("stdin"), c.flag("stdout"), c.flag("stderr"), func(tty bool, gone func()) (peer, bool, error) {
		conn, err := c.hijack(tty, gone)
		return conn, !tty, err
	})
}

// containerAttachWS is attach over a websocket. All streams are one there; before
// 1.42 there was no choice of streams.
func (s *Server) containerAttachWS(c *call) error {
	in, out, errs := true, true, true
	if c.version >= 42 {
		in, out, errs = c.flag("stdin"), c.flag("stdout"), c.flag("stderr")
	}
	return s.attachTo(c, in, out, errs, func(_ bool, gone func()) (peer, bool, error) {
		conn, err := c.websocket(gone)
		return conn, false, err
	})
}

// connect takes a client's connection. framed says that output carries the name of
// its stream.
type connect func(tty bool, gone func()) (conn peer, framed bool, err error)

func (s *Server) attachTo(c *call, stdin, stdout, stderr bool, f connect) error {
	keys, err := detachKeys(c.query("detachKeys"))
	if err != nil {
		return err
	}
	a := engine.Attached{Stdout: stdout, Stderr: stderr, Stream: c.flag("stream"), Logs: c.flag("logs"), DetachKeys: keys}
	return s.attached(c, &a, stdin, f, func(ctx context.Context) error {
		return s.cfg.Engine.Attach(ctx, c.vars["id"], a)
	})
}

// attached runs f, which attaches with a, and connects to the client when a
// begins.
func (s *Server) attached(c *call, a *engine.Attached, stdin bool, take connect, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	var conn peer
	// The connection is taken when f is sure to attach; its input is wanted at the
	// same time. late bridges the two.
	late := &lateReader{ready: make(chan struct{})}
	if stdin {
		a.Stdin = late
	}
	a.Interrupt = func() { conn.interrupt() }
	a.Begin = func(tty bool) (func(stdio.Stream, []byte) error, error) {
		taken, framed, err := take(tty, cancel)
		if err != nil {
			return nil, err
		}
		conn = taken
		if !stdin {
			conn.ignore()
		}
		late.r = conn
		close(late.ready)
		return output(conn, !framed), nil
	}
	err := f(ctx)
	if conn == nil {
		return err
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("attach ended", "path", c.URL.Path, "error", err)
	}
	conn.finish()
	return errBegun
}

// lateReader reads from what is set once ready is closed.
type lateReader struct {
	ready chan struct{}
	r     io.Reader
}

func (l *lateReader) Read(p []byte) (int, error) {
	<-l.ready
	return l.r.Read(p)
}

func detachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, invalid("Invalid detach keys (%s) provided", s)
	}
	return keys, nil
}

// webClient is a client behind a websocket. It has left when it sends no more: a
// websocket knows no half of a connection.
type webClient struct {
	*websocket.Conn
	gone  func()
	watch sync.WaitGroup
	done  chan struct{} // closed by finish
	ended chan struct{} // closed when the websocket's server has ended
}

// websocket takes the connection. What the client asks for is checked by the
// websocket's server, which answers a bad request by itself.
func (c *call) websocket(gone func()) (*webClient, error) {
	w := &webClient{gone: gone, done: make(chan struct{}), ended: make(chan struct{})}
	taken := make(chan struct{})
	server := websocket.Server{Handler: func(conn *websocket.Conn) {
		w.Conn = conn
		conn.PayloadType = websocket.BinaryFrame
		_ = conn.SetDeadline(time.Time{})
		close(taken)
		<-w.done
	}}
	go func() {
		defer close(w.ended)
		server.ServeHTTP(c.w, c.Request)
	}()
	select {
	case <-taken:
		return w, nil
	case <-w.ended:
		return nil, errBegun
	}
}

// Read reads the client's input. Its end, which is not one that interrupt made,
// means that the client has left.
func (w *webClient) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil && !isTimeout(err) {
		w.gone()
	}
	return n, err
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func (w *webClient) ignore() {
	w.watch.Go(func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{w}) })
}

func (w *webClient) interrupt() { _ = w.SetReadDeadline(time.Unix(1, 0)) }

func (w *webClient) finish() {
	w.interrupt()
	w.watch.Wait()
	_ = w.Close()
	close(w.done)
	<-w.ended
}
