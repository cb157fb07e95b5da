package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestRealize(t *testing.T) {
	s := serve(t, 1<<20)
	features, config := s.Realize(8)
	const want = 1<<5 | featIndirect | featEventIdx | featVersion1 | featProtocol
	if features != want {
		t.Errorf("features %#x, want %#x", features, uint64(want))
	}
	if !bytes.Equal(config, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("config %v", config)
	}
	ask := func(off, size uint32, room int) []byte {
		return s.Ask(vhosttest.GetConfig, append(vhosttest.State(off, size), make([]byte, 4+room)...))
	}
	if got := ask(6, 4, 4)[12:]; !bytes.Equal(got, []byte{7, 8, 0, 0}) {
		t.Errorf("config from 6: %v", got)
	}
	for _, bad := range [][]byte{ask(0, 300, 300), ask(1<<31, 8, 8), ask(0, 8, 7), ask(0, 1<<32-1, 8)} {
		if len(bad) != 0 {
			t.Errorf("impossible question answered with %v", bad)
		}
	}
}

// TestHangUp: the front-end's end is ours, and not an error.
func TestHangUp(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(0)
	ring := s.NewRing(0, 8)
	s.Start(version1, ring)
	s.Close()
	if err := s.result(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if got := strings.Join(s.dev.said(), " "); got != "fresh stop" {
		t.Errorf("the device heard %q", got)
	}
	if s.dev.q.Begin() {
		t.Error("a queue can be used after Serve")
	}
}

func TestContextEnds(t *testing.T) {
	_, back := vhosttest.Pair(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("because")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	err := Serve(ctx, back, Spec{Queues: 1}, &mirror{}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, why) {
		t.Errorf("Serve: %v", err)
	}
}

func memfd(t testing.TB, size int64, seal bool) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if seal {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func table(regions ...[4]uint64) []byte {
	b := vhosttest.State(uint32(len(regions)), 0)
	for _, r := range regions {
		for _, v := range r {
			b = le.AppendUint64(b, v)
		}
	}
	return b
}

// TestRefusals: what a front-end must not ask for ends the session with an error
// that says what it was.
func TestRefusals(t *testing.T) {
	const mb = 1 << 20
	sealed, unsealed, event := memfd(t, mb, true), memfd(t, mb, false), eventfd(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	u64, state := vhosttest.U64, vhosttest.State
	tests := []struct {
		name    string
		req     uint32
		payload []byte
		fds     []int
		want    string
	}{
		{"unknown request", 77, nil, nil, "unknown request"},
		{"unknown request, zero", 0, nil, nil, "unknown request"},
		{"features not offered", vhosttest.SetFeatures, u64(1 << 35), nil, "not offered"},
		{"features, no payload", vhosttest.SetFeatures, nil, nil, "payload"},
		{"protocol features not offered", vhosttest.SetProtocolFeatures, u64(1 << 1), nil, "not offered"},
		{"files that nobody wants", vhosttest.SetFeatures, u64(0), []int{event}, "unexpected files"},
		{"no such queue", vhosttest.SetVringNum, state(2, 8), nil, "queue 2 of 2"},
		{"no such queue, enable", vhosttest.SetVringEnable, state(1<<31, 1), nil, "queue 2147483648"},
		{"no such queue, base", vhosttest.GetVringBase, state(9, 0), nil, "queue 9"},
		{"no such queue, kick", vhosttest.SetVringKick, u64(200), []int{event}, "queue 200"},
		{"size no power of two", vhosttest.SetVringNum, state(0, 12), nil, "12 descriptors"},
		{"size zero", vhosttest.SetVringNum, state(0, 0), nil, "0 descriptors"},
		{"size huge", vhosttest.SetVringNum, state(0, 1<<31), nil, "2147483648 descriptors"},
		{"base", vhosttest.SetVringBase, state(0, 1<<16), nil, "base 65536"},
		{"ring flags", vhosttest.SetVringAddr, append(state(0, 1), make([]byte, 32)...), nil, "ring flags"},
		{"ring address, short", vhosttest.SetVringAddr, state(0, 0), nil, "payload"},
		{"kick without file", vhosttest.SetVringKick, u64(0), nil, "0 files where 1"},
		{"kick without polling", vhosttest.SetVringKick, u64(1 << 8), nil, "polled"},
		{"kick, two files", vhosttest.SetVringKick, u64(0), []int{event, event}, "2 files where 1"},
		{"kick, odd number", vhosttest.SetVringKick, u64(1 << 9), []int{event}, "payload"},
		{"kick is no eventfd", vhosttest.SetVringKick, u64(0), []int{int(null.Fd())}, "not an eventfd"},
		{"call is no eventfd", vhosttest.SetVringCall, u64(0), []int{sealed}, "not an eventfd"},
		{"memory, short", vhosttest.SetMemTable, state(2, 0), nil, "payload"},
		{"memory, too many regions", vhosttest.SetMemTable, state(1<<31, 0), nil, "payload"},
		{"memory, file missing", vhosttest.SetMemTable, table([4]uint64{0, mb, 0, 0}), nil, "1 regions with 0 files"},
		{"memory, not sealed", vhosttest.SetMemTable, table([4]uint64{0, mb, 0, 0}), []int{unsealed}, "sealed"},
		{"memory, no memfd", vhosttest.SetMemTable, table([4]uint64{0, mb, 0, 0}), []int{int(null.Fd())}, "sealed"},
		{"memory, larger than its file", vhosttest.SetMemTable, table([4]uint64{0, mb + 8, 0, 0}), []int{sealed}, "of a file of"},
		{"memory, beyond its file", vhosttest.SetMemTable, table([4]uint64{0, mb, 0, 8}), []int{sealed}, "of a file of"},
		{"memory, offset wraps", vhosttest.SetMemTable, table([4]uint64{0, mb, 0, 1<<64 - mb}), []int{sealed}, "impossible"},
		{"memory, guest address wraps", vhosttest.SetMemTable, table([4]uint64{1<<64 - 8, mb, 0, 0}), []int{sealed}, "impossible"},
		{"memory, user address wraps", vhosttest.SetMemTable, table([4]uint64{0, mb, 1<<64 - 8, 0}), []int{sealed}, "impossible"},
		{"memory, nothing", vhosttest.SetMemTable, table([4]uint64{0, 0, 0, 0}), []int{sealed}, "impossible"},
		{"memory, huge", vhosttest.SetMemTable, table([4]uint64{0, 1<<64 - 1, 0, 0}), []int{sealed}, "impossible"},
		{"memory, odd", vhosttest.SetMemTable, table([4]uint64{4, mb, 0, 0}), []int{sealed}, "aligned"},
		{"memory, overlap", vhosttest.SetMemTable, table([4]uint64{0, mb / 2, 0, 0}, [4]uint64{mb / 4, mb / 2, mb, 0}), []int{sealed, sealed}, "overlaps"},
		{"config, short", vhosttest.GetConfig, state(0, 8), nil, "payload"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, mb)
			s.Realize(0)
			before := openFiles(t)
			if err := s.Try(test.req, test.payload, test.fds...); err == nil {
				t.Fatal("it was accepted")
			}
			if err := s.result(t); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Serve: %v, want %q", err, test.want)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d files are left open", after-before)
			}
		})
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestRingPlaces: a ring that does not lie whole and aligned in memory is
// refused when it is to start.
func TestRingPlaces(t *testing.T) {
	tests := []struct {
		name string
		move func(f *vhosttest.FrontEnd, r *vhosttest.Ring)
		want string
	}{
		{"descriptors over the end", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Desc = uint64(len(f.Memory())) - 16*7 }, "descriptor table: address outside"},
		{"descriptors odd", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Desc += 8 }, "descriptor table: address"},
		{"avail over the end", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Avail = uint64(len(f.Memory())) - 20 }, "avail ring: address outside"},
		{"avail odd", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Avail += 2 }, "avail ring: address"},
		{"used over the end of its region", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Used = uint64(len(f.Memory()))/2 - 68 }, "used ring: address outside"},
		{"used nowhere", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Used = uint64(len(f.Memory())) }, "used ring: address outside"},
		{"used odd", func(f *vhosttest.FrontEnd, r *vhosttest.Ring) { r.Used++ }, "used ring: address"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, 1<<20)
			s.Realize(0)
			r := s.NewRing(0, 8)
			test.move(s.FrontEnd, r)
			addrs := vhosttest.State(0, 0)
			for _, off := range []uint64{r.Desc, r.Used, r.Avail, 0} {
				addrs = le.AppendUint64(addrs, s.UserAddr(off))
			}
			mem, fds := s.MemTable()
			s.Do(vhosttest.SetMemTable, mem, fds...)
			s.Do(vhosttest.SetVringNum, vhosttest.State(0, 8))
			s.Do(vhosttest.SetVringAddr, addrs)
			s.Do(vhosttest.SetVringKick, vhosttest.U64(0), eventfd(t))
			if err := s.Try(vhosttest.SetVringEnable, vhosttest.State(0, 1)); err == nil {
				t.Fatal("it was accepted")
			}
			if err := s.result(t); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Serve: %v, want %q", err, test.want)
			}
		})
	}
}

// TestShrinkingTable: a memory table without the rings of a running queue ends
// the session, not the process.
func TestShrinkingTable(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(0)
	r := s.NewRing(0, 8)
	s.Start(version1, r)
	if err := s.Try(vhosttest.SetMemTable, table()); err == nil {
		t.Error("it was accepted")
	}
	r.ForceKick()
	if err := s.result(t); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("Serve: %v", err)
	}
}

func TestBadStreams(t *testing.T) {
	tests := []struct {
		name, bytes, want string
	}{
		{"cut header", "\x01\x00\x00\x00\x01", "EOF"},
		{"cut payload", "\x02\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x01", "EOF"},
		{"wrong version", "\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", "flags"},
		{"a reply", "\x01\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00", "flags"},
		{"huge payload", "\x01\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff", "payload of 4294967295"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			front, back := vhosttest.Pair(t)
			served := make(chan error, 1)
			go func() {
				served <- Serve(context.Background(), back, Spec{Queues: 1}, &mirror{}, slog.New(slog.DiscardHandler))
			}()
			front.Write([]byte(test.bytes))
			front.CloseWrite()
			if err := <-served; err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Serve: %v, want %q", err, test.want)
			}
		})
	}
}

// TestTooManyFiles: they are refused and closed.
func TestTooManyFiles(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(0)
	before := openFiles(t)
	fds := make([]int, 20)
	event := eventfd(t)
	for i := range fds {
		fds[i] = event
	}
	if err := s.Try(vhosttest.SetMemTable, table(), fds...); err == nil {
		t.Error("it was accepted")
	}
	if err := s.result(t); err == nil || !strings.Contains(err.Error(), "too many files") {
		t.Errorf("Serve: %v", err)
	}
	if after := openFiles(t); after > before+1 {
		t.Errorf("%d files are left open", after-before)
	}
}

// FuzzMessages feeds a stream of messages to a session that has realized a
// device, with files of every kind among them.
func FuzzMessages(f *testing.F) {
	msg := func(file byte, req uint32, payload []byte) []byte {
		b := append([]byte{file, byte(req), byte(len(payload)), byte(len(payload) >> 8)}, payload...)
		return b
	}
	var start []byte
	start = append(start, msg(0, vhosttest.SetFeatures, vhosttest.U64(1<<30|1<<32))...)
	start = append(start, msg(1, vhosttest.SetMemTable, table([4]uint64{0, 1 << 20, 1 << 30, 0}))...)
	start = append(start, msg(0, vhosttest.SetVringNum, vhosttest.State(0, 8))...)
	addr := vhosttest.State(0, 0)
	for _, v := range []uint64{1 << 30, 1<<30 + 4096, 1<<30 + 8192, 0} {
		addr = le.AppendUint64(addr, v)
	}
	start = append(start, msg(0, vhosttest.SetVringAddr, addr)...)
	start = append(start, msg(2, vhosttest.SetVringKick, vhosttest.U64(0))...)
	start = append(start, msg(2, vhosttest.SetVringCall, vhosttest.U64(0))...)
	start = append(start, msg(0, vhosttest.SetVringEnable, vhosttest.State(0, 1))...)
	f.Add(start)
	f.Add(append(start, msg(0, vhosttest.GetVringBase, vhosttest.State(0, 0))...))
	f.Add(append(start, start...))
	f.Add(msg(0, vhosttest.GetConfig, make([]byte, 20)))
	fds := []int{memfd(f, 1<<20, true), eventfd(f), memfd(f, 4096, false)}
	f.Fuzz(func(t *testing.T, b []byte) {
		front, back := vhosttest.Pair(t)
		served := make(chan error, 1)
		go func() {
			served <- Serve(context.Background(), back, Spec{Queues: 2, Config: make([]byte, 8)}, &mirror{}, slog.New(slog.DiscardHandler))
		}()
		go io.Copy(io.Discard, front)
		for len(b) >= 4 {
			size := min(int(le.Uint16(b[2:])), len(b)-4)
			out := le.AppendUint32(nil, uint32(b[1]))
			out = le.AppendUint32(out, flagVersion|uint32(b[0]>>4)&flagNeedReply)
			out = le.AppendUint32(out, uint32(size))
			var oob []byte
			if file := int(b[0] & 7); file > 0 && file <= len(fds) {
				oob = unix.UnixRights(fds[file-1])
			}
			if _, _, err := front.WriteMsgUnix(append(out, b[4:4+size]...), oob, nil); err != nil {
				break
			}
			b = b[4+size:]
		}
		front.CloseWrite()
		select {
		case <-served:
		case <-time.After(5 * time.Second):
			t.Fatal("Serve does not return")
		}
	})
}
