package qemu

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

// The FUSE requests that the test's folder answers.
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseOpen    = 14
	fuseRead    = 15
	fuseRelease = 18
	fuseFlush   = 25
	fuseInit    = 26

	fuseHeader = 40
	fileNode   = 2
	fileText   = "from the host"
)

// oneFile is a folder with one file, "hello".
type oneFile struct {
	inits, resets atomic.Int32
}

// Reset implements vm.ShareServer.
func (f *oneFile) Reset() error {
	f.resets.Add(1)
	return nil
}

// HandleRequest implements vm.ShareServer.
func (f *oneFile) HandleRequest(in, out [][]byte) int {
	request := bytes.Join(in, nil)
	if len(request) < fuseHeader {
		return 0
	}
	op, unique, node := binary.LittleEndian.Uint32(request[4:]), request[8:16], binary.LittleEndian.Uint64(request[16:])
	body, errno := f.answer(op, node, request[fuseHeader:])
	if op == fuseForget {
		return 0
	}
	reply := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	reply = binary.LittleEndian.AppendUint32(reply, uint32(-int32(errno)))
	reply = append(append(reply, unique...), body...)
	n := 0
	for _, b := range out {
		n += copy(b, reply[n:])
	}
	return n
}

func (f *oneFile) answer(op uint32, node uint64, args []byte) ([]byte, syscall.Errno) {
	le := binary.LittleEndian
	switch op {
	case fuseInit:
		f.inits.Add(1)
		body := make([]byte, 64)
		le.PutUint32(body[0:], 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[20:], 128<<10) // max_write
		return body, 0
	case fuseGetattr:
		return append(make([]byte, 16), attributes(node)...), 0
	case fuseLookup:
		if name, _, _ := bytes.Cut(args, []byte{0}); string(name) != "hello" {
			return nil, syscall.ENOENT
		}
		body := make([]byte, 40)
		le.PutUint64(body, fileNode)
		return append(body, attributes(fileNode)...), 0
	case fuseOpen:
		return make([]byte, 16), 0
	case fuseRead:
		offset := min(le.Uint64(args[8:]), uint64(len(fileText)))
		return []byte(fileText)[offset:], 0
	case fuseRelease, fuseFlush:
		return nil, 0
	}
	return nil, syscall.ENOSYS
}

// attributes is struct fuse_attr.
func attributes(node uint64) []byte {
	le := binary.LittleEndian
	attr := make([]byte, 88)
	le.PutUint64(attr, node)
	mode, links := uint32(syscall.S_IFDIR|0o755), uint32(2)
	if node == fileNode {
		mode, links = syscall.S_IFREG|0o644, 1
		le.PutUint64(attr[8:], uint64(len(fileText)))
	}
	le.PutUint32(attr[60:], mode)
	le.PutUint32(attr[64:], links)
	return attr
}

// TestShares mounts a folder in a guest that restarts five times with it mounted.
func TestShares(t *testing.T) {
	cfg := guestConfig(t)
	folder := &oneFile{}
	cfg.Shares = []vm.Share{{Tag: "folder", Server: folder}}
	m, err := New(Options{}).New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ready, err := m.Listen(testguest.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(2*time.Minute, func() { ready.Close() })
	start(t, m)
	for boot := range 6 {
		c, err := ready.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := tell(t, m, "share folder hello"); err != nil || got != "read "+fileText {
			t.Fatalf("boot %d: %q, %v", boot, got, err)
		}
		if boot < 5 {
			tell(t, m, "reboot") // the end may overtake the answer
		}
	}
	if inits, resets := folder.inits.Load(), folder.resets.Load(); inits != 6 || resets < 5 {
		t.Errorf("the folder was initialized %d times and reset %d times, for 6 boots", inits, resets)
	}
}

func TestShareWithoutServer(t *testing.T) {
	cfg := plainConfig(t)
	cfg.Shares = []vm.Share{{Tag: "folder", Path: "/home"}}
	if m, err := standInDriver(t, "works").New(t.Context(), cfg, t.TempDir()); err == nil {
		m.Close()
		t.Error("New with a share that nobody serves succeeded")
	}
}
