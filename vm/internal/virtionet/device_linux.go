package virtionet

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"sync"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/vhostuser"
)

// Features of the device, virtio 1.2, section 5.1.3.
const (
	featChecksum      = 1 << 0 // it completes checksums
	featGuestChecksum = 1 << 1 // so does the driver
	featGuestTSO4     = 1 << 7 // the driver takes TCP segments of any length
	featHostTSO4      = 1 << 11
	featMergeable     = 1 << 15 // a frame may fill several of the driver's buffers
	features          = featChecksum | featGuestChecksum | featGuestTSO4 | featHostTSO4 | featMergeable
)

// The header of a frame, section 5.1.6.
const (
	headerLen       = 12
	flagChecksum    = 1
	segmentTCP4     = 1
	maxFrame        = 65535 + 18   // the longest IPv4 packet, and Ethernet's header with a tag
	maxWaiting      = 4 << 20      // bytes of frames that wait for the guest's buffers
	batchBytes      = 4 * maxFrame // at most so much is taken from the guest before it is handed on
	maxHeld         = 1024         // buffers for one frame: more than an honest guest's queue has
	rxQueue, queues = 0, 2
)

// Device is one network device. It serves one front-end, once.
type Device struct {
	network vm.OffloadNetwork
	log     *slog.Logger
	receive func([]byte)

	// Only the calls for the guest's sending queue use these.
	in     vhostuser.Chain
	batch  []byte
	frames [][]byte

	mu       sync.Mutex // guards what follows; taken before the receive queue's lock
	rx       *vhostuser.Queue
	features uint64
	running  bool
	held     []*vhostuser.Chain // receive buffers that were taken for the next frame
	free     []*vhostuser.Chain // to be used again
	waiting  []frame
	bytes    int // of waiting
	lost     bool
}

// frame is one that waits for the guest's buffers.
type frame struct {
	off  vm.Offload
	data []byte
}

// New makes the device at the guest's end of a network's cable.
func New(network vm.OffloadNetwork, log *slog.Logger) *Device {
	return &Device{network: network, log: log}
}

// Serve plugs the device in and serves the front-end at the other end of conn until
// it hangs up or ctx ends. It closes conn.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error {
	receive, unplug, err := d.network.Plug(d.send)
	if err != nil {
		conn.Close()
		return err
	}
	defer unplug()
	d.receive = receive
	return vhostuser.Serve(ctx, conn, vhostuser.Spec{Features: features, Queues: queues}, d, d.log)
}

// Start is called by the transport.
func (d *Device) Start(queues []*vhostuser.Queue, features uint64, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rx, d.features, d.running = queues[rxQueue], features, true
	if fresh {
		d.held, d.waiting, d.bytes = nil, nil, 0
	}
}

// Stop is called by the transport.
func (d *Device) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = false
}

// HandleQueue is called by the transport.
func (d *Device) HandleQueue(q *vhostuser.Queue) {
	if q.Index() != rxQueue {
		d.take(q)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flush()
}

// take hands on what the guest has sent, until there is nothing more. The network
// works on a batch only when the queue is free again: it may want to answer.
func (d *Device) take(q *vhostuser.Queue) {
	for more := true; more && q.Begin(); {
		q.DisableKicks()
		d.batch, d.frames = d.batch[:0], d.frames[:0]
		if d.batch == nil {
			d.batch = make([]byte, 0, batchBytes)
		}
		for cap(d.batch)-len(d.batch) >= maxFrame && q.Pop(&d.in) {
			d.read()
			q.Push(&d.in, 0)
		}
		more = q.EnableKicks()
		err := q.Err()
		q.End()
		for _, f := range d.frames {
			d.receive(f)
		}
		if err != nil {
			d.log.Warn("the guest broke its network device's ring", "error", err)
		}
	}
}

// read copies a frame into the batch. Its header says what the network does not need
// to know: it takes segments of any length, and their checksums on trust.
func (d *Device) read() {
	var head [headerLen]byte
	n := d.in.Read(head[:])
	size := d.in.Readable()
	if n < headerLen || size > maxFrame {
		d.log.Debug("dropped a frame of the guest's", "bytes", size)
		return
	}
	at := len(d.batch)
	d.batch = d.batch[:at+int(size)]
	d.frames = append(d.frames, d.batch[at:at+d.in.Read(d.batch[at:])])
}

// send puts a frame into the guest's buffers. While there are none it waits for them,
// which send does not.
func (d *Device) send(off vm.Offload, data [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running || (off.Segment != 0 && d.features&featGuestTSO4 == 0) || (off.Checksum && d.features&featGuestChecksum == 0) {
		return // for a guest that is gone
	}
	if len(d.waiting) == 0 && d.rx.Begin() {
		done := d.put(off, data)
		d.rx.End()
		if done {
			return
		}
	}
	f := frame{off, slices.Concat(data...)}
	if d.bytes+len(f.data) > maxWaiting {
		if !d.lost {
			d.log.Debug("the guest does not take what its network brings: packets are lost")
		}
		d.lost = true
		return
	}
	d.waiting = append(d.waiting, f)
	if d.bytes += len(f.data); len(d.waiting) == 1 {
		d.flush()
	}
}

// flush delivers what waits, as far as there are buffers, and asks for a kick if
// there are too few. The caller holds mu.
func (d *Device) flush() {
	for d.running && d.rx.Begin() {
		d.rx.DisableKicks()
		for len(d.waiting) > 0 && d.put(d.waiting[0].off, [][]byte{d.waiting[0].data}) {
			d.bytes -= len(d.waiting[0].data)
			d.waiting[0] = frame{}
			d.waiting = d.waiting[1:]
		}
		more := len(d.waiting) > 0 && d.rx.EnableKicks()
		broken := d.rx.Err() != nil
		d.rx.End()
		if broken {
			d.running = false
		}
		if !more {
			break
		}
	}
	if len(d.waiting) == 0 {
		d.waiting, d.lost = nil, false
	}
}

// put writes a frame into the guest's buffers, unless there are too few: those that
// it has found stay held for the next attempt. A frame that they can never take is
// dropped. The caller holds mu and the queue.
func (d *Device) put(off vm.Offload, data [][]byte) bool {
	need := uint64(headerLen)
	for _, p := range data {
		need += uint64(len(p))
	}
	n, room := 0, uint64(0)
	for ; room < need; n++ {
		if n == len(d.held) && !d.hold() {
			return false
		}
		room += d.held[n].Writable()
		if room < need && (d.features&featMergeable == 0 || n == maxHeld) {
			d.release(n+1, nil)
			return true
		}
	}
	var head [headerLen]byte
	encode(&head, off, n)
	d.release(n, append([][]byte{head[:]}, data...))
	return true
}

// hold takes one more of the guest's buffers.
func (d *Device) hold() bool {
	c := new(vhostuser.Chain)
	if k := len(d.free); k > 0 {
		c, d.free = d.free[k-1], d.free[:k-1]
	}
	if !d.rx.Pop(c) {
		d.free = append(d.free, c)
		return false
	}
	d.held = append(d.held, c)
	return true
}

// release gives the first n of the held buffers back, with data in them.
func (d *Device) release(n int, data [][]byte) {
	for _, c := range d.held[:n] {
		written := 0
		for len(data) > 0 && c.Writable() > 0 {
			k := c.Write(data[0])
			written += k
			if data[0] = data[0][k:]; len(data[0]) == 0 {
				data = data[1:]
			} else if k == 0 {
				break
			}
		}
		d.rx.Push(c, uint32(written))
	}
	d.free = append(d.free, d.held[:n]...)
	d.held = append(d.held[:0], d.held[n:]...)
}

// encode makes the header of a frame that fills n buffers.
func encode(head *[headerLen]byte, off vm.Offload, n int) {
	le := binary.LittleEndian
	if off.Checksum {
		head[0] = flagChecksum
		le.PutUint16(head[6:], off.ChecksumStart)
		le.PutUint16(head[8:], off.ChecksumOffset)
	}
	if off.Segment != 0 {
		head[1] = segmentTCP4
		le.PutUint16(head[4:], off.Segment)
	}
	le.PutUint16(head[2:], off.Header)
	le.PutUint16(head[10:], uint16(n))
}
