package vhosttest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Requests of the vhost-user protocol that front-ends make.
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	SetMemTable         = 5
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	SetVringErr         = 14
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	SetVringEnable      = 18
	GetConfig           = 24
)

// Features a driver may accept.
const (
	FeatureIndirect = 1 << 28
	FeatureEventIdx = 1 << 29
	FeatureProtocol = 1 << 30
	FeatureVersion1 = 1 << 32
)

// The guest's memory is one memfd, shown to the back-end as two regions that are
// neither neighbours nor in the same order in any of the address spaces: an
// address taken for another kind of address fails.
const (
	lowGuest, highGuest = 0x10_0000, 0x1_0000_0000
	lowUser, highUser   = 0x7f00_0000_0000, 0x7e00_0000_0000
)

var le = binary.LittleEndian

// FrontEnd plays QEMU and the guest's memory. Requests may be made from several
// goroutines.
type FrontEnd struct {
	tb   testing.TB
	conn *net.UnixConn
	fd   int
	half uint64 // size of each region
	next uint64 // first byte of the memory that is not allocated
	mem  []byte

	mu sync.Mutex // one request at a time
}

// Pair returns the two ends of a unix socket.
func Pair(tb testing.TB) (front, back *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			tb.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		tb.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// New makes a front-end with a memory of size bytes, a multiple of two pages,
// on its end of a socket.
func New(tb testing.TB, conn *net.UnixConn, size int) *FrontEnd {
	tb.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		tb.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		tb.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Munmap(mem); unix.Close(fd) })
	return &FrontEnd{tb: tb, conn: conn, fd: fd, half: uint64(size) / 2, mem: mem}
}

// Use makes another test the one that fails, as fuzz targets want it.
func (f *FrontEnd) Use(tb testing.TB) { f.tb = tb }

// Close hangs up.
func (f *FrontEnd) Close() { f.conn.Close() }

// Memory is all of the guest's memory, for tests that scribble.
func (f *FrontEnd) Memory() []byte { return f.mem }

// Alloc takes n bytes of guest memory, aligned to 16, and returns where in
// Memory they are. Nothing is ever freed, and nothing spans the two regions.
func (f *FrontEnd) Alloc(n int) uint64 {
	start := (f.next + 15) &^ 15
	if start < f.half && start+uint64(n) > f.half {
		start = f.half
	}
	if start+uint64(n) > uint64(len(f.mem)) {
		f.tb.Fatalf("vhosttest: no %d bytes left in the guest's memory", n)
	}
	f.next = start + uint64(n)
	return start
}

// GuestAddr turns a place in Memory into the guest-physical address that
// descriptors want.
func (f *FrontEnd) GuestAddr(off uint64) uint64 {
	if off < f.half {
		return highGuest + off
	}
	return lowGuest + off - f.half
}

// UserAddr turns a place in Memory into the address that ring requests want.
func (f *FrontEnd) UserAddr(off uint64) uint64 {
	if off < f.half {
		return lowUser + off
	}
	return highUser + off - f.half
}

// Send makes a request and asks for no reply.
func (f *FrontEnd) Send(req uint32, payload []byte, fds ...int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.send(req, 1, payload, fds)
}

// Do makes a request with NEED_REPLY and fails the test if the back-end refuses.
func (f *FrontEnd) Do(req uint32, payload []byte, fds ...int) {
	f.tb.Helper()
	if err := f.Try(req, payload, fds...); err != nil {
		f.tb.Fatal(err)
	}
}

// Try makes a request with NEED_REPLY and returns the back-end's refusal.
func (f *FrontEnd) Try(req uint32, payload []byte, fds ...int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.send(req, 1|1<<3, payload, fds); err != nil {
		return err
	}
	reply, err := f.receive(req)
	if err != nil {
		return err
	}
	if len(reply) != 8 || le.Uint64(reply) != 0 {
		return fmt.Errorf("request %d: refused with %x", req, reply)
	}
	return nil
}

// Ask makes a request that has an answer of its own.
func (f *FrontEnd) Ask(req uint32, payload []byte) []byte {
	f.tb.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.send(req, 1, payload, nil)
	if err == nil {
		var reply []byte
		if reply, err = f.receive(req); err == nil {
			return reply
		}
	}
	f.tb.Fatalf("request %d: %v", req, err)
	return nil
}

func (f *FrontEnd) send(req, flags uint32, payload []byte, fds []int) error {
	b := le.AppendUint32(nil, req)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	_, _, err := f.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

func (f *FrontEnd) receive(req uint32) ([]byte, error) {
	var h [12]byte
	if _, err := io.ReadFull(f.conn, h[:]); err != nil {
		return nil, err
	}
	if got, flags := le.Uint32(h[:]), le.Uint32(h[4:]); got != req || flags != 1|1<<2 {
		return nil, fmt.Errorf("reply to request %d with flags %#x where one to %d was due", got, flags, req)
	}
	payload := make([]byte, le.Uint32(h[8:]))
	_, err := io.ReadFull(f.conn, payload)
	return payload, err
}

// U64 is the payload of a request that carries a number.
func U64(v uint64) []byte { return le.AppendUint64(nil, v) }

// State is the payload of a request about a ring.
func State(index, num uint32) []byte {
	return le.AppendUint32(le.AppendUint32(nil, index), num)
}

// MemTable is the payload that describes the guest's memory. It goes with the
// memory's file twice.
func (f *FrontEnd) MemTable() (payload []byte, fds []int) {
	b := State(2, 0)
	for _, v := range []uint64{
		lowGuest, f.half, highUser, f.half,
		highGuest, f.half, lowUser, 0,
	} {
		b = le.AppendUint64(b, v)
	}
	return b, []int{f.fd, f.fd}
}

// Realize does what QEMU does when it makes the device, and returns the device's
// features and n bytes of its configuration space.
func (f *FrontEnd) Realize(n int) (features uint64, config []byte) {
	f.tb.Helper()
	features = le.Uint64(f.Ask(GetFeatures, nil))
	protocol := le.Uint64(f.Ask(GetProtocolFeatures, nil))
	if err := f.Send(SetProtocolFeatures, U64(protocol)); err != nil {
		f.tb.Fatal(err)
	}
	f.Do(SetOwner, nil)
	if n > 0 {
		payload := append(State(0, uint32(n)), make([]byte, 4+n)...)
		config = f.Ask(GetConfig, payload)[12:]
	}
	return features, config
}

// Start does what QEMU does when the driver is ready: the features it accepted,
// the memory, and each ring at its base.
func (f *FrontEnd) Start(features uint64, rings ...*Ring) {
	f.tb.Helper()
	f.Do(SetFeatures, U64(features|FeatureProtocol))
	table, fds := f.MemTable()
	f.Do(SetMemTable, table, fds...)
	for _, r := range rings {
		if on := features&FeatureEventIdx != 0; on != r.eventIdx { // else a driver that was only paused may be looking
			r.eventIdx = on
		}
		f.Do(SetVringNum, State(r.index, uint32(r.num)))
		f.Do(SetVringBase, State(r.index, uint32(r.base)))
		f.Do(SetVringAddr, r.addrs())
		f.Do(SetVringKick, U64(uint64(r.index)), r.kick)
		f.Do(SetVringCall, U64(uint64(r.index)), r.call)
	}
	for _, r := range rings {
		f.Do(SetVringEnable, State(r.index, 1))
	}
}

// Stop does what QEMU does when the machine is paused or reset. A ring that is
// started again goes on where it was, unless Ring.Reset is called in between.
func (f *FrontEnd) Stop(rings ...*Ring) {
	f.tb.Helper()
	for _, r := range rings {
		f.Do(SetVringEnable, State(r.index, 0))
	}
	for _, r := range rings {
		reply := f.Ask(GetVringBase, State(r.index, 0))
		r.base = uint16(le.Uint32(reply[4:]))
	}
}
