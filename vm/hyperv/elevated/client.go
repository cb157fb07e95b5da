package elevated

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// client is a compute.Service by way of the service.
type client struct {
	dial  func(context.Context) (net.Conn, error)
	check func() error // what is wrong with this Windows, whoever asks
}

// Probe implements compute.Service.
func (c client) Probe(ctx context.Context) (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	l, err := c.connect(ctx)
	if err != nil {
		return "", err
	}
	defer l.Close()
	r, err := l.ask(ctx, Request{Probe: true})
	return r.Version, err
}

// Create implements compute.Service.
func (c client) Create(ctx context.Context, d compute.Design) (compute.System, error) {
	l, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	r, err := l.ask(ctx, Request{Create: &d})
	if err != nil {
		l.Close()
		return nil, err
	}
	l.runtimeID = r.RuntimeID
	return l, nil
}

func (c client) connect(ctx context.Context) (*line, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &line{conn: conn, events: make(chan compute.Event), done: make(chan struct{}), waiting: map[uint64]chan Reply{}}
	go l.read()
	return l, nil
}

// line is a connection to the service, and the machine it has. It implements
// compute.System.
type line struct {
	conn      net.Conn
	runtimeID string
	events    chan compute.Event
	done      chan struct{} // closed by Close
	closing   sync.Once

	writing sync.Mutex // one frame at a time

	mu      sync.Mutex // guards what follows
	next    uint64
	waiting map[uint64]chan Reply // nil once the service has hung up
}

var errHungUp = fmt.Errorf("%w: the service has ended the connection, and the virtual machine with it", vm.ErrNotRunning)

// read hands out what comes from the service.
func (l *line) read() {
	defer close(l.events)
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, reply := range l.waiting {
			close(reply)
		}
		l.waiting = nil
	}()
	for {
		var r Reply
		if err := wire.ReadFrame(l.conn, &r); err != nil {
			return
		}
		if r.Event != nil {
			select {
			case l.events <- *r.Event:
			case <-l.done:
			}
			continue
		}
		l.mu.Lock()
		reply := l.waiting[r.ID]
		delete(l.waiting, r.ID)
		l.mu.Unlock()
		if reply != nil {
			reply <- r
		}
	}
}

// ask sends a request and waits for its reply.
func (l *line) ask(ctx context.Context, r Request) (Reply, error) {
	reply := make(chan Reply, 1)
	l.mu.Lock()
	if l.waiting == nil {
		l.mu.Unlock()
		return Reply{}, errHungUp
	}
	l.next++
	r.ID = l.next
	l.waiting[r.ID] = reply
	l.mu.Unlock()
	l.writing.Lock()
	err := wire.WriteFrame(l.conn, r)
	l.writing.Unlock()
	if err != nil && !errors.Is(err, wire.ErrFrameTooLarge) {
		err = errHungUp
	}
	if err != nil {
		return Reply{}, err
	}
	select {
	case got, ok := <-reply:
		if !ok {
			return Reply{}, errHungUp
		}
		return got, got.err()
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
}

// RuntimeID implements compute.System.
func (l *line) RuntimeID() string { return l.runtimeID }

// Do implements compute.System.
func (l *line) Do(ctx context.Context, o compute.Order) error {
	_, err := l.ask(ctx, Request{Order: &o})
	return err
}

// Events implements compute.System.
func (l *line) Events() <-chan compute.Event { return l.events }

// Close implements compute.System.
func (l *line) Close() error {
	l.closing.Do(func() {
		close(l.done)
		l.conn.Close()
	})
	return nil
}
