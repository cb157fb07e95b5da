package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/hub"
)

const (
	// connectTimeout bounds one attempt of the framework's to connect, which has
	// no bound of its own; connectTries is how many are made.
	connectTimeout = 2 * time.Second
	connectTries   = 3
)

// frame gives the framework's streams a half-close.
func frame(raw net.Conn) hub.Stream { return framed.New(raw) }

// carrier is the framework's machine for its hub.
type carrier struct {
	inst    instance
	patient time.Duration   // connectTimeout, but in tests
	done    <-chan struct{} // closed when the machine's streams have ended
}

// Listen implements hub.Carrier. The library's listeners stay silent when they are
// closed.
func (c carrier) Listen(port uint32) (net.Listener, error) { return c.inst.listen(port) }

// Dial implements hub.Carrier. The framework may never answer, so each attempt has
// an end, and the next may do better: the guest may have been about to load its
// driver.
func (c carrier) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	for range connectTries {
		conn, err := c.try(ctx, port)
		if !errors.Is(err, errUnanswered) {
			return conn, err
		}
	}
	return nil, fmt.Errorf("the guest does not answer on vsock port %d: %w", port, syscall.ETIMEDOUT)
}

var errUnanswered = errors.New("no answer")

// try is one attempt.
func (c carrier) try(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		conn net.Conn
		err  error
	}
	answer, gaveUp := make(chan result), make(chan struct{})
	defer close(gaveUp)
	go func() {
		conn, err := c.inst.connect(port)
		select {
		case answer <- result{conn, err}:
		case <-gaveUp:
			if err == nil {
				conn.Close()
			}
		}
	}()
	timer := time.NewTimer(c.patient)
	defer timer.Stop()
	select {
	case r := <-answer:
		if r.err != nil {
			return nil, fmt.Errorf("dial the guest's vsock port %d: %w", port, r.err)
		}
		return r.conn, nil
	case <-timer.C:
		return nil, errUnanswered
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		return nil, vm.ErrNotRunning
	}
}
