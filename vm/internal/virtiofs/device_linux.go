package virtiofs

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"sync"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/vhostuser"
)

const (
	maxTag      = 36       // bytes of the tag in the configuration space
	maxInFlight = 64       // requests
	maxMemory   = 16 << 20 // bytes of all requests' and replies' buffers

	// maxMessage is the longest request or reply: 1 MiB of data behind a page of
	// headers. A chain's room beyond it is left unused.
	maxMessage = 1<<20 + 4096

	headerLen = 40 // struct fuse_in_header, whose first field is the length

	// reused is from how many bytes on a buffer is used again, by what reads and
	// writes files: a fresh one costs more than all else that is done here.
	reused = 32 << 10
)

// Device is one shared folder's device. It serves one front-end, once.
type Device struct {
	tag    string
	server vm.ShareServer
	log    *slog.Logger

	work sync.WaitGroup // every goroutine that may call the server

	// buffers are *[maxMessage]byte. They hold only what this folder's guest has
	// seen: it gets no more of one than the server has written.
	buffers sync.Pool

	mu       sync.Mutex // guards what follows; taken before a queue's lock
	session  *session
	inFlight int
	memory   int
	waiting  []*vhostuser.Queue // with chains that had no room
}

// session is one run of the guest's driver.
type session struct {
	requests sync.WaitGroup // in flight
	ready    chan struct{}  // closed when the server has forgotten the session before
}

// New makes the device for a folder that the guest mounts by tag, at most 36
// bytes without NUL.
func New(tag string, server vm.ShareServer, log *slog.Logger) (*Device, error) {
	if err := (vm.Share{Tag: tag}).Validate(); err != nil {
		return nil, err
	}
	first := &session{ready: make(chan struct{})}
	close(first.ready)
	return &Device{tag: tag, server: server, log: log, session: first}, nil
}

// Serve serves the front-end at the other end of conn until it hangs up or ctx
// ends, and closes conn. The server is not called any more once it returns.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error {
	config := make([]byte, maxTag+4)
	copy(config, d.tag)
	binary.LittleEndian.PutUint32(config[maxTag:], 1) // request queues, besides the one for high priority
	err := vhostuser.Serve(ctx, conn, vhostuser.Spec{Queues: 2, Config: config}, d, d.log)
	d.work.Wait()
	return err
}

// Start is called by the transport. A new driver's requests wait until those of
// the old one have ended, and the server with them, but the transport does not: a
// request that hangs on the host must not stop the machine.
func (d *Device) Start(_ []*vhostuser.Queue, _ uint64, fresh bool) {
	if !fresh {
		return
	}
	d.mu.Lock()
	old, next := d.session, &session{ready: make(chan struct{})}
	d.session = next
	d.waiting = nil
	d.mu.Unlock()
	d.work.Go(func() {
		<-old.ready
		old.requests.Wait()
		if err := d.server.Reset(); err != nil {
			d.log.Error("cannot start anew on a shared folder", "tag", d.tag, "error", err)
		}
		close(next.ready)
	})
}

// Stop is called by the transport. Requests in flight go on; their replies reach
// the guest if it was only paused.
func (d *Device) Stop() {}

// HandleQueue is called by the transport.
func (d *Device) HandleQueue(q *vhostuser.Queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pump(q)
}

// request is one chain with its buffers.
type request struct {
	session *session
	queue   *vhostuser.Queue
	chain   vhostuser.Chain
	in      []byte
	out     []byte
}

// pump starts the requests that the guest has queued, as far as there is room.
// The caller holds mu.
func (d *Device) pump(q *vhostuser.Queue) {
	for more := true; more && q.Begin(); {
		more = d.batch(q)
		err := q.Err()
		q.End() // in between, so that a guest that never stops offering cannot hold up the transport
		if err != nil {
			d.log.Warn("the guest broke a shared folder's ring", "tag", d.tag, "error", err)
		}
	}
}

// batch starts some requests and says whether there are more. The caller holds mu
// and the queue.
func (d *Device) batch(q *vhostuser.Queue) (more bool) {
	for q.Available() {
		if d.inFlight >= maxInFlight || d.memory >= maxMemory {
			d.wait(q)
			return false
		}
		r := &request{session: d.session, queue: q}
		if !q.Pop(&r.chain) {
			return false
		}
		d.start(r)
	}
	return q.Err() == nil && q.EnableKicks()
}

func (d *Device) wait(q *vhostuser.Queue) {
	for _, w := range d.waiting {
		if w == q {
			return
		}
	}
	d.waiting = append(d.waiting, q)
}

// start takes a request out of the guest's memory and lets it run. The caller
// holds mu and the queue.
func (d *Device) start(r *request) {
	readable, writable := r.chain.Readable(), r.chain.Writable()
	if readable < headerLen || readable > maxMessage {
		r.queue.Push(&r.chain, 0)
		return
	}
	r.in = d.buffer(readable)
	if n := r.chain.Read(r.in); n < len(r.in) {
		d.free(r.in)
		r.queue.Push(&r.chain, 0)
		return
	}
	r.out = d.buffer(min(writable, maxMessage))
	d.inFlight++
	d.memory += len(r.in) + len(r.out)
	r.session.requests.Add(1)
	d.work.Go(func() { d.serve(r) })
}

// buffer returns n bytes, at most maxMessage, for a request or a reply.
func (d *Device) buffer(n uint64) []byte {
	if n < reused {
		return make([]byte, n)
	}
	b, ok := d.buffers.Get().(*[maxMessage]byte)
	if !ok {
		b = new([maxMessage]byte)
	}
	return b[:n]
}

// free takes a buffer back.
func (d *Device) free(b []byte) {
	if cap(b) == maxMessage {
		d.buffers.Put((*[maxMessage]byte)(b[:maxMessage]))
	}
}

// serve answers a request and makes room for those that wait.
func (d *Device) serve(r *request) {
	defer r.session.requests.Done()
	<-r.session.ready
	n := d.server.HandleRequest([][]byte{r.in}, [][]byte{r.out})
	if r.queue.Begin() {
		written := r.chain.Write(r.out[:min(n, len(r.out))])
		r.queue.Push(&r.chain, uint32(written))
		r.queue.End()
	}
	size := len(r.in) + len(r.out)
	d.free(r.in)
	d.free(r.out)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight--
	d.memory -= size
	waiting := d.waiting
	d.waiting = nil
	for _, q := range waiting {
		d.pump(q)
	}
}
