package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Protocol features offered to the front-end.
const (
	protoMQ       = 1 << 0
	protoReplyAck = 1 << 3
	protoConfig   = 1 << 9
)

// maxQueues is what the protocol can number.
const maxQueues = 256

// Spec describes a device to its front-end and driver. It does not change.
type Spec struct {
	// Features are the feature bits of the device's type. The transport adds
	// those of the rings and the bus.
	Features uint64
	// Queues is how many queues the transport serves. A front-end that has more
	// (QEMU implements vsock's event queue itself) keeps the rest.
	Queues int
	// Config is the device's configuration space, at most 256 bytes. Nil leaves
	// it to the front-end. The driver cannot write it.
	Config []byte
}

// Device is what a back-end does with its queues. No lock of the transport is
// held during a call. Start, Stop and HandleQueue end soon: the front-end, and
// with it the virtual machine, waits for them.
type Device interface {
	// Start is called before the first queue runs. fresh says that the driver
	// starts from nothing, so that whatever was agreed with a driver before is
	// void; otherwise the machine was only paused. features are those the driver
	// has accepted. The queues are the same at each call, in order of their index.
	Start(queues []*Queue, features uint64, fresh bool)

	// Stop is called after the last queue was stopped, by a pause or a reset of
	// the machine, which look alike, or by the end of Serve. Queue.Begin returns
	// false from before the call until after the next Start.
	Stop()

	// HandleQueue is called after Start when the queue has begun to run, and
	// whenever the driver kicks it. Calls are serial for each queue, and none is
	// under way for a queue that is stopped.
	HandleQueue(q *Queue)
}

// Serve serves dev to the front-end at the other end of conn until it hangs up
// or ctx ends; it closes conn. It returns nil when the front-end hung up between
// two messages, ctx's error when ctx ended, else what was wrong. Everything the
// front-end lent is given back and no call to dev is under way by then.
func Serve(ctx context.Context, conn *net.UnixConn, spec Spec, dev Device, log *slog.Logger) error {
	defer conn.Close()
	if spec.Queues < 1 || spec.Queues > maxQueues || len(spec.Config) > maxConfig {
		return fmt.Errorf("impossible device: %d queues, %d bytes of configuration", spec.Queues, len(spec.Config))
	}
	b := &backend{spec: spec, dev: dev, log: log, conn: conn}
	for i := range spec.Queues {
		b.queues = append(b.queues, &Queue{index: i, log: log, callFD: noFD, errFD: noFD, kickFD: noFD})
	}
	b.kicks = make([]kicker, spec.Queues)
	defer b.close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := b.loop()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET):
		return nil
	}
	return err
}

// backend is one session with a front-end. Only Serve's goroutine uses it.
type backend struct {
	spec   Spec
	dev    Device
	log    *slog.Logger
	conn   *net.UnixConn
	queues []*Queue
	kicks  []kicker // by queue
	mem    *memory

	features uint64
	protocol uint64
	running  int  // how many queues run
	started  bool // the device has been, once
}

func (b *backend) close() {
	for i := range b.queues {
		b.stopQueue(i)
		b.kicks[i].close()
		q := b.queues[i]
		_ = q.setMemory(nil)
		closeFD(q.callFD)
		closeFD(q.errFD)
		closeFD(q.kickFD)
		q.callFD, q.errFD, q.kickFD = noFD, noFD, noFD
	}
	b.mem.unmap()
}

func (b *backend) loop() error {
	for {
		m, err := readMessage(b.conn)
		if err != nil {
			return err
		}
		reply, err := b.handle(m)
		m.close()
		ack := m.flags&flagNeedReply != 0 && b.protocol&protoReplyAck != 0
		switch {
		case err != nil:
			err = fmt.Errorf("vhost-user request %d: %w", m.req, err)
			if ack && reply == nil {
				_ = writeReply(b.conn, m.req, le.AppendUint64(nil, 1))
			}
			return err
		case reply == nil && ack:
			reply = le.AppendUint64(nil, 0)
		case reply == nil:
			continue
		}
		if err := writeReply(b.conn, m.req, reply); err != nil {
			return err
		}
	}
}

// handle does what a message asks for and returns the payload of its reply, nil
// if it has none. An error ends the session: QEMU sends nothing that we refuse.
func (b *backend) handle(m *message) (reply []byte, err error) {
	if len(m.fds) > 0 && !m.req.takesFDs() {
		return nil, errors.New("unexpected files")
	}
	switch m.req {
	case reqGetFeatures:
		return le.AppendUint64(nil, b.offered()), nil
	case reqSetFeatures:
		return nil, b.setFeatures(m)
	case reqGetProtocolFeatures:
		return le.AppendUint64(nil, b.offeredProtocol()), nil
	case reqSetProtocolFeatures:
		return nil, b.setProtocolFeatures(m)
	case reqSetOwner:
		return nil, nil
	case reqResetOwner:
		for i := range b.queues {
			b.queues[i].enabled = false
			b.stopQueue(i)
		}
		return nil, nil
	case reqGetQueueNum:
		return le.AppendUint64(nil, uint64(b.spec.Queues)), nil
	case reqGetConfig:
		return b.getConfig(m)
	case reqSetConfig:
		// Nothing here is writable; virtio lets a device ignore such a write.
		return nil, nil
	case reqSetMemTable:
		return nil, b.setMemTable(m)
	case reqGetVringBase:
		return b.getVringBase(m)
	}
	return nil, b.handleVring(m)
}

func (r request) takesFDs() bool {
	switch r {
	case reqSetMemTable, reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return true
	}
	return false
}

// handleVring does the requests that set something of one queue.
func (b *backend) handleVring(m *message) error {
	switch m.req {
	case reqSetVringAddr:
		index, addrs, err := m.vringAddr()
		if err != nil {
			return err
		}
		return b.configure(index, func(q *Queue) error {
			q.addrs, q.hasAddrs = addrs, true
			return nil
		})
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return b.setVringFD(m)
	case reqSetVringNum, reqSetVringBase, reqSetVringEnable:
	default:
		return errors.New("unknown request")
	}
	index, num, err := m.vringState()
	if err != nil {
		return err
	}
	switch m.req {
	case reqSetVringNum:
		return b.configure(index, func(q *Queue) error {
			if num == 0 || num > maxQueueSize || num&(num-1) != 0 {
				return fmt.Errorf("queue of %d descriptors", num)
			}
			q.num = uint16(num)
			return nil
		})
	case reqSetVringBase:
		return b.configure(index, func(q *Queue) error {
			if num > 0xffff {
				return fmt.Errorf("base %d", num)
			}
			q.base = uint16(num)
			return nil
		})
	}
	return b.enable(index, num)
}

func (b *backend) offered() uint64 {
	return b.spec.Features | ringFeatures | featProtocol
}

func (b *backend) offeredProtocol() uint64 {
	f := uint64(protoReplyAck)
	if b.spec.Config != nil {
		f |= protoConfig
	}
	if b.spec.Queues > 2 {
		f |= protoMQ
	}
	return f
}

func (b *backend) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^b.offered() != 0 {
		return fmt.Errorf("features %#x were not offered", v&^b.offered())
	}
	if b.running > 0 && v != b.features {
		return errors.New("features change while queues run")
	}
	b.features = v
	if v&featProtocol == 0 {
		for i := range b.queues {
			b.queues[i].enabled = true
		}
	}
	return nil
}

func (b *backend) setProtocolFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^b.offeredProtocol() != 0 {
		return fmt.Errorf("protocol features %#x were not offered", v&^b.offeredProtocol())
	}
	b.protocol = v
	return nil
}

// getConfig answers with as much as was asked for; an empty answer is how the
// protocol says that the question was wrong.
func (b *backend) getConfig(m *message) ([]byte, error) {
	if len(m.payload) < configHeaderLen {
		return nil, m.badPayload()
	}
	off, size := le.Uint32(m.payload), le.Uint32(m.payload[4:])
	if size > maxConfig || off > maxConfig || int(size) != len(m.payload)-configHeaderLen {
		return []byte{}, nil
	}
	reply := make([]byte, configHeaderLen+int(size))
	copy(reply, m.payload[:configHeaderLen])
	if int(off) < len(b.spec.Config) {
		copy(reply[configHeaderLen:], b.spec.Config[off:])
	}
	return reply, nil
}

// setMemTable swaps the memory, also under running queues: each gives up the
// old one between two batches, and it is unmapped after the last has.
func (b *backend) setMemTable(m *message) error {
	infos, err := m.memTable()
	if err != nil {
		return err
	}
	mem, err := mapMemory(infos, m.fds)
	if err != nil {
		return err
	}
	for _, q := range b.queues {
		err = errors.Join(err, q.setMemory(mem))
	}
	b.mem.unmap()
	b.mem = mem
	return err
}

func (b *backend) queue(index uint32) (*Queue, error) {
	if index >= uint32(len(b.queues)) {
		return nil, fmt.Errorf("queue %d of %d", index, len(b.queues))
	}
	return b.queues[index], nil
}

// configure changes a queue that does not run.
func (b *backend) configure(index uint32, set func(*Queue) error) error {
	q, err := b.queue(index)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running {
		return fmt.Errorf("queue %d is changed while it runs", index)
	}
	return set(q)
}

func (b *backend) setVringFD(m *message) error {
	index, fd, err := m.vringFD()
	if err != nil {
		return err
	}
	q, err := b.queue(index)
	if err != nil {
		closeFD(fd)
		return err
	}
	if m.req == reqSetVringKick {
		return b.setKick(q, fd)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.req == reqSetVringErr {
		closeFD(q.errFD)
		q.errFD = fd
		return nil
	}
	closeFD(q.callFD)
	q.callFD = fd
	if q.running {
		signal(fd) // a call that went to the old one may be lost; one too many is harmless
	}
	return nil
}

// setKick starts the ring, if it is enabled too.
func (b *backend) setKick(q *Queue, fd int) error {
	if fd == noFD {
		return errors.New("a queue without kicks would have to be polled, which is not supported")
	}
	b.kicks[q.index].close()
	closeFD(q.kickFD)
	q.kickFD = fd
	if q.runs() {
		return b.listen(q)
	}
	return b.startQueue(q)
}

func (b *backend) enable(index, on uint32) error {
	q, err := b.queue(index)
	if err != nil {
		return err
	}
	q.enabled = on != 0
	if on == 0 {
		b.stopQueue(int(index))
		return nil
	}
	return b.startQueue(q)
}

// startQueue starts a queue that is both enabled and kicked, and with the first
// of them the device. A driver that starts anew begins every queue at 0; one
// that was paused has been somewhere, unless it never sent anything.
func (b *backend) startQueue(q *Queue) error {
	if !q.enabled || q.kickFD == noFD || !q.hasAddrs || q.num == 0 || q.runs() {
		return nil
	}
	if b.running == 0 {
		fresh := !slices.ContainsFunc(b.queues, func(q *Queue) bool { return q.base != 0 }) || !b.started
		if fresh {
			for _, q := range b.queues {
				q.newDriver()
			}
		}
		b.started = true
		b.dev.Start(b.queues, b.features&^featProtocol, fresh)
	}
	if err := q.start(b.features); err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	b.running++
	return b.listen(q)
}

func (b *backend) stopQueue(index int) {
	q := b.queues[index]
	if !q.runs() {
		return
	}
	q.stop()
	b.kicks[index].close()
	if b.running--; b.running == 0 {
		b.dev.Stop()
	}
}

// getVringBase stops a queue, as the protocol has it.
func (b *backend) getVringBase(m *message) ([]byte, error) {
	index, _, err := m.vringState()
	if err != nil {
		return nil, err
	}
	q, err := b.queue(index)
	if err != nil {
		return nil, err
	}
	b.stopQueue(int(index))
	closeFD(q.kickFD)
	q.kickFD = noFD
	return le.AppendUint32(le.AppendUint32(nil, index), uint32(q.base)), nil
}

// listen starts a goroutine that turns kicks into calls of the device.
func (b *backend) listen(q *Queue) error {
	return b.kicks[q.index].open(q.kickFD, func() { b.dev.HandleQueue(q) })
}

// kicker waits for kicks in a goroutine.
type kicker struct {
	file *os.File
	done sync.WaitGroup
}

// open calls do at once and then after each kick, until close. The descriptor
// stays the caller's.
func (k *kicker) open(fd int, do func()) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("dup of the kick eventfd: %w", err)
	}
	k.file = os.NewFile(uintptr(dup), "kick")
	k.done.Go(func() {
		var count [8]byte
		for {
			do()
			if _, err := k.file.Read(count[:]); err != nil {
				return
			}
		}
	})
	return nil
}

// close returns when no call is under way and none will come.
func (k *kicker) close() {
	if k.file != nil {
		k.file.Close()
		k.done.Wait()
		k.file = nil
	}
}
