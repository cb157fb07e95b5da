package virtiovsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"syscall"

	"github.com/berthvm/berth/vm/internal/vhostuser"
)

// Limits that keep a hostile or broken guest from using up the host.
const (
	// maxGuestConns is how many connections the guest may have opened,
	// maxHostConns how many we may have: one does not use up the other's.
	maxGuestConns = 1024
	maxHostConns  = 4096

	backlog = 128 // connections of one listener that nobody has accepted

	// maxReplies is how many packets without a connection may wait for the
	// guest's receive buffers before we stop looking at what it sends.
	maxReplies = 512

	// Each connection buffers at most bufferLarge bytes that nobody reads, or
	// bufferSmall once all the promises together exceed bufferBudget.
	bufferLarge  = 256 << 10
	bufferSmall  = 64 << 10
	bufferBudget = 64 << 20
)

// Options configures a Device. GuestCID is required, the rest has defaults.
type Options struct {
	GuestCID uint64       // the guest's address: at least 3, below 2^32-1
	Log      *slog.Logger // nil drops what would be logged
}

// Device is a virtio vsock device. Its methods are safe for concurrent use.
type Device struct {
	cid uint64
	log *slog.Logger

	// mu guards all below and the state of every connection and listener. The
	// locks of the queues are taken while it is held, never the other way round.
	mu        sync.Mutex
	closed    bool
	serving   context.CancelCauseFunc // of the Serve that runs
	up        bool                    // the driver has started and was not reset since
	running   bool                    // the queues run; false while paused or reset
	rx, tx    *vhostuser.Queue        // rx is what the guest receives; nil before the first start
	conns     map[connKey]*conn
	listeners map[uint32]*listener
	nextPort  uint32 // where to look for a free port of ours

	// These count connections until they are both gone and closed.
	guestConns int
	hostConns  int
	promised   int // sum of their buffers

	replies  []header // packets without a connection, first to go
	ready    connQueue
	txPaused bool // the guest's packets wait until replies has room
	rxChain  vhostuser.Chain
	txChain  vhostuser.Chain

	continuing bool // a goroutine of work is about to run
	work       sync.WaitGroup
}

// connKey identifies a connection.
type connKey struct{ host, guest uint32 }

// New makes a device. It starts nothing and holds nothing until Serve, Dial or
// Listen is called. It panics when GuestCID is not a guest's address, which is
// the program's mistake and not the user's.
func New(opts Options) *Device {
	if opts.GuestCID <= HostCID || opts.GuestCID >= math.MaxUint32 {
		panic(fmt.Sprintf("virtiovsock: %d is not a guest's CID", opts.GuestCID))
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Device{
		cid: opts.GuestCID, log: log,
		conns: make(map[connKey]*conn), listeners: make(map[uint32]*listener),
		nextPort: 1 << 30,
	}
}

// Serve speaks vhost-user with the front-end (QEMU) over conn and carries the
// guest's packets until the front-end hangs up, ctx ends or Close is called. It
// closes conn and ends every connection of the guest before it returns. The
// error is nil when the front-end hung up in an orderly way or the device was
// closed, ctx's error when ctx ended, else what went wrong.
//
// One Serve runs at a time; a second one at once is an error.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := d.beginServe(cancel); err != nil {
		conn.Close()
		return err
	}
	err := vhostuser.Serve(ctx, conn, vhostuser.Spec{
		Queues: 2, // the event queue stays with QEMU, which alone knows of migrations
		Config: binary.LittleEndian.AppendUint64(nil, d.cid),
	}, callbacks{d}, d.log)
	d.work.Wait() // no queue runs, so none is added
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serving = nil
	d.rx, d.tx = nil, nil
	d.forget()
	if d.closed && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (d *Device) beginServe(cancel context.CancelCauseFunc) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	if d.serving != nil {
		return errors.New("the vsock device is served already")
	}
	d.serving = cancel
	return nil
}

// Dial connects to a port on which the guest listens. The connection has
// CloseWrite and deadlines.
//
// A port nobody listens on fails at once with ECONNREFUSED, and so does any port
// while the guest's driver is not up: before it has started for the first time,
// and after Reset until it has started again. Dial does not wait for a guest to
// boot; callers dial after the guest has called them. While the guest is paused,
// and while it offers no receive buffers, Dial waits until ctx ends.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{d.cid, port}, Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, net.ErrClosed
	case !d.up:
		return nil, fmt.Errorf("the guest's vsock driver is not up: %w", syscall.ECONNREFUSED)
	case d.hostConns >= maxHostConns:
		return nil, fmt.Errorf("%d connections to the guest are open: %w", maxHostConns, syscall.EMFILE)
	}
	c := d.newConn(connKey{d.freePort(port), port}, false)
	c.state = stateDialing
	c.post(doRequest)
	defer context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		c.readable.Broadcast()
	})()
	d.run()
	for c.state == stateDialing && ctx.Err() == nil {
		c.readable.Wait()
	}
	switch {
	case c.established: // and perhaps ended since, which Read will tell
		return c, nil
	case c.state == stateDialing:
		c.lent = false
		c.abort(ctx.Err(), c.todo&doRequest == 0)
		d.run()
		return nil, ctx.Err()
	}
	c.lent = false
	c.release()
	return nil, c.err
}

// freePort finds a port of ours that has neither a listener nor a connection to
// the guest's port.
func (d *Device) freePort(guest uint32) uint32 {
	for {
		port := d.nextPort
		if d.nextPort++; d.nextPort == math.MaxUint32 {
			d.nextPort = 1 << 30
		}
		if d.listeners[port] == nil && d.conns[connKey{port, guest}] == nil {
			return port
		}
	}
}

// Reset drops every connection, as ECONNRESET, because the guest was reset. The
// listeners stay. Dial fails with ECONNREFUSED until the driver has started
// again. A restart is noticed without Reset too, only later: when the driver
// starts. Called late or for nothing, while the driver runs, it only drops the
// connections.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running {
		d.forget()
		return
	}
	for _, c := range d.conns {
		c.abort(syscall.ECONNRESET, true)
	}
	d.run()
}

// Close drops every connection and listener and ends Serve. Calls after it fail
// with net.ErrClosed. It may be called more than once and waits for nothing.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.forget()
	for _, l := range d.listeners {
		l.close()
	}
	if d.serving != nil {
		d.serving(net.ErrClosed)
	}
	return nil
}

// forget drops all that was agreed with the driver, which is gone.
func (d *Device) forget() {
	d.up = false
	d.replies, d.ready, d.txPaused = nil, connQueue{}, false
	for _, c := range d.conns {
		c.abort(syscall.ECONNRESET, false)
	}
}

// callbacks is what the transport sees of a device.
type callbacks struct{ d *Device }

func (cb callbacks) Start(queues []*vhostuser.Queue, _ uint64, fresh bool) {
	d := cb.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rx, d.tx = queues[0], queues[1]
	d.running = true
	if fresh {
		d.forget()
		d.up = !d.closed
	}
}

func (cb callbacks) Stop() {
	cb.d.mu.Lock()
	defer cb.d.mu.Unlock()
	cb.d.running = false
}

func (cb callbacks) HandleQueue(q *vhostuser.Queue) {
	d := cb.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if q == d.tx {
		d.receive()
	}
	d.run()
}
