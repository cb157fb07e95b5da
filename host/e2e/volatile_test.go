//go:build linux

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// volatileDisk stands between a machine's QEMU and its data disk as an NBD server
// with a write cache that loses power: when QEMU dies, each block that the guest
// has not flushed survives or is lost by chance. Killing QEMU alone would lose
// nothing that has left the guest, as the host's page cache keeps it.
type volatileDisk struct {
	dir      string
	listener net.Listener
	served   sync.WaitGroup

	mu         sync.Mutex // guards what follows
	lost, kept int        // blocks, at all cuts so far
	err        error
}

const volatileBlock = 4096

// volatileScript is a QEMU whose writable disk is the server's. It notes where the
// disk's file is.
const volatileScript = `#!/bin/sh
for arg; do
	shift
	case $arg in
	'{'*'"driver":"file"'*'"read-only":false'*)
		printf %%s "$arg" | sed 's/.*"filename":"\([^"]*\)".*/\1/' >'%[1]s/path'
		arg=$(printf %%s "$arg" | sed 's|"file":{[^}]*}|"file":{"driver":"nbd","export":"disk","server":{"type":"unix","path":"%[1]s/nbd"}}|') ;;
	esac
	set -- "$@" "$arg"
done
exec '%[2]s' "$@"
`

// withVolatileDisk gives machines that are started from now on, one at a time, a
// volatile disk.
func withVolatileDisk(t *testing.T) *volatileDisk {
	t.Helper()
	const name = "qemu-system-x86_64"
	qemu, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	d := &volatileDisk{dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(d.dir, name), fmt.Appendf(nil, volatileScript, d.dir, qemu), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", d.dir+":"+os.Getenv("PATH"))
	if d.listener, err = net.Listen("unix", filepath.Join(d.dir, "nbd")); err != nil {
		t.Fatal(err)
	}
	d.served.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			err = d.serve(conn)
			conn.Close()
			d.mu.Lock()
			d.err = errors.Join(d.err, err)
			d.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		d.listener.Close()
		d.served.Wait()
		if d.err != nil {
			t.Errorf("the volatile disk: %v", d.err)
		}
	})
	return d
}

// The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const (
	nbdOption   = 0x49484156454f5054
	nbdReply    = 0x3e889045565a9
	nbdRequest  = 0x25609513
	nbdAnswer   = 0x67446698
	nbdHasFlags = 1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 // flags, FLUSH, FUA, TRIM, WRITE_ZEROES
)

func (d *volatileDisk) serve(conn net.Conn) error {
	path, err := os.ReadFile(filepath.Join(d.dir, "path"))
	if err != nil {
		return err
	}
	file, err := os.OpenFile(strings.TrimSpace(string(path)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	c := &volatileConn{conn: conn, in: bufio.NewReaderSize(conn, 1<<20), file: file, size: uint64(info.Size()), dirty: map[int64][]byte{}}
	if ok, err := c.negotiate(); err != nil || !ok {
		return err
	}
	if err := c.transmit(); err != nil {
		return err
	}
	// An orderly end has left nothing dirty.
	odds := rand.Float64()
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := range c.dirty {
		if rand.Float64() < odds {
			delete(c.dirty, at)
			d.lost++
		} else {
			d.kept++
		}
	}
	return c.flush()
}

// volatileConn is one QEMU's connection.
type volatileConn struct {
	conn  net.Conn
	in    *bufio.Reader
	file  *os.File
	size  uint64
	dirty map[int64][]byte // by offset, blocks of volatileBlock
}

// negotiate answers options until the export is chosen. Not ok: QEMU has gone.
func (c *volatileConn) negotiate() (ok bool, err error) {
	if _, err := c.conn.Write(append([]byte("NBDMAGICIHAVEOPT"), 0, 3)); err != nil {
		return false, err
	}
	var flags uint32
	if err := binary.Read(c.in, binary.BigEndian, &flags); err != nil {
		return false, nil
	}
	for {
		var option struct {
			Magic       uint64
			Option, Len uint32
		}
		if err := binary.Read(c.in, binary.BigEndian, &option); err != nil {
			return false, nil
		}
		if option.Magic != nbdOption || option.Len > 64<<10 {
			return false, errors.New("a broken option")
		}
		if _, err := c.in.Discard(int(option.Len)); err != nil {
			return false, nil
		}
		answer := func(kind uint32, data []byte) {
			head := binary.BigEndian.AppendUint64(nil, nbdReply)
			for _, n := range []uint32{option.Option, kind, uint32(len(data))} {
				head = binary.BigEndian.AppendUint32(head, n)
			}
			_, werr := c.conn.Write(append(head, data...))
			err = errors.Join(err, werr)
		}
		switch option.Option {
		case 6, 7: // INFO, GO
			export := binary.BigEndian.AppendUint64([]byte{0, 0}, c.size)
			answer(3, binary.BigEndian.AppendUint16(export, nbdHasFlags))
			answer(1, nil)
			if option.Option == 7 {
				return err == nil, err
			}
		case 2: // ABORT
			answer(1, nil)
			return false, nil
		default:
			answer(1<<31|1, nil) // not supported
		}
		if err != nil {
			return false, err
		}
	}
}

// transmit serves requests until QEMU has gone, orderly or not.
func (c *volatileConn) transmit() error {
	for {
		var r struct {
			Magic       uint32
			Flags, Type uint16
			Handle      uint64
			Offset      uint64
			Len         uint32
		}
		if err := binary.Read(c.in, binary.BigEndian, &r); err != nil {
			return nil
		}
		if r.Magic != nbdRequest || r.Len > 64<<20 && (r.Type == 0 || r.Type == 1) || r.Offset > c.size || uint64(r.Len) > c.size-r.Offset {
			return errors.New("a broken request")
		}
		var data []byte
		var err error
		switch r.Type {
		case 0: // READ
			data, err = c.read(int64(r.Offset), int(r.Len))
		case 1: // WRITE
			body := make([]byte, r.Len)
			if _, err := io.ReadFull(c.in, body); err != nil {
				return nil
			}
			if err = c.write(int64(r.Offset), body); err == nil && r.Flags&1 != 0 { // FUA
				err = c.flush()
			}
		case 2: // DISC
			return c.flush()
		case 3: // FLUSH
			err = c.flush()
		case 4, 6: // TRIM, WRITE_ZEROES
			err = c.zero(int64(r.Offset), int64(r.Len))
		default:
			return fmt.Errorf("an unknown request %d", r.Type)
		}
		if err != nil {
			return err
		}
		head := binary.BigEndian.AppendUint32(nil, nbdAnswer)
		head = binary.BigEndian.AppendUint64(append(head, 0, 0, 0, 0), r.Handle)
		if _, err := c.conn.Write(append(head, data...)); err != nil {
			return nil
		}
	}
}

// blocks calls f for each block that a range touches, with the range's part of it.
func blocks(offset int64, n int, f func(block int64, from, to, at int) error) error {
	for at := 0; at < n; {
		block := (offset + int64(at)) / volatileBlock * volatileBlock
		from := int(offset + int64(at) - block)
		to := min(volatileBlock, from+n-at)
		if err := f(block, from, to, at); err != nil {
			return err
		}
		at += to - from
	}
	return nil
}

func (c *volatileConn) read(offset int64, n int) ([]byte, error) {
	data := make([]byte, n)
	if _, err := c.file.ReadAt(data, offset); err != nil {
		return nil, err
	}
	return data, blocks(offset, n, func(block int64, from, to, at int) error {
		if b := c.dirty[block]; b != nil {
			copy(data[at:], b[from:to])
		}
		return nil
	})
}

func (c *volatileConn) write(offset int64, data []byte) error {
	return blocks(offset, len(data), func(block int64, from, to, at int) error {
		b := c.dirty[block]
		if b == nil {
			b = make([]byte, volatileBlock)
			if to-from < volatileBlock {
				if _, err := c.file.ReadAt(b, block); err != nil && err != io.EOF {
					return err
				}
			}
			c.dirty[block] = b
		}
		copy(b[from:to], data[at:])
		return nil
	})
}

// zero is done at once, as a disk may.
func (c *volatileConn) zero(offset, n int64) error {
	first, end := (offset+volatileBlock-1)/volatileBlock*volatileBlock, (offset+n)/volatileBlock*volatileBlock
	if first >= end {
		return c.write(offset, make([]byte, n))
	}
	err := errors.Join(c.write(offset, make([]byte, first-offset)), c.write(end, make([]byte, offset+n-end)))
	if n/volatileBlock < int64(len(c.dirty)) {
		for block := first; block < end; block += volatileBlock {
			delete(c.dirty, block)
		}
	} else {
		for block := range c.dirty {
			if block >= first && block < end {
				delete(c.dirty, block)
			}
		}
	}
	const hole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return errors.Join(err, unix.Fallocate(int(c.file.Fd()), hole, first, end-first))
}

func (c *volatileConn) flush() error {
	for block, b := range c.dirty {
		if _, err := c.file.WriteAt(b, block); err != nil {
			return err
		}
	}
	clear(c.dirty)
	return nil
}
