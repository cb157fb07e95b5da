package keeper

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"
)

// Limits of what the keeper holds and a packet carries.
const (
	MaxKey    = 255      // bytes of a key
	MaxRecord = 64 << 10 // bytes of a record
	MaxFiles  = 16       // files of an entry

	maxEntries = 1 << 14
	maxText    = 1 << 10
	maxPacket  = MaxRecord + 16<<10
)

// Entry is what the keeper holds under one key.
type Entry struct {
	Key     string
	Record  []byte     // the engine's own; the keeper does not look into it
	Files   []*os.File // from Get only: new dups in the order they were put, the caller's to close
	Process *Process   // nil before the first Adopt
}

// Process is an adopted process.
type Process struct {
	PID       int
	StartTime uint64 // clock ticks since boot; with PID it names the process for good
	Exited    bool
	Status    syscall.WaitStatus // once Exited
	At        time.Time          // of the exit, once Exited
}

// Exit reports the end of an adopted process.
type Exit struct {
	Key string
	Process
}

type kind uint8

const (
	kindPut kind = iota + 1
	kindGet
	kindList
	kindDelete
	kindAdopt

	kindReply kind = 128
	kindExit  kind = 129
)

// code is a reply's error code: those a client turns into its sentinel errors.
type code uint8

const (
	codeOK code = iota
	codeFailed
	codeNotFound
	codeNoProcess
	codeFull
)

var errMalformed = errors.New("keeper: malformed packet")

// call is a client's message, less its files.
type call struct {
	kind   kind
	number uint32
	key    string
	record []byte
	pid    int
}

// answer is a server's message, less its files: a reply, or an exit.
type answer struct {
	kind    kind
	number  uint32
	code    code
	text    string
	more    bool
	entries []Entry // one for an exit
}

func (c call) encode() []byte {
	b := make([]byte, 0, 32+len(c.key)+len(c.record))
	b = append(b, byte(c.kind))
	b = binary.LittleEndian.AppendUint32(b, c.number)
	b = appendBytes(b, c.key)
	switch c.kind {
	case kindPut:
		b = appendBytes(b, c.record)
	case kindAdopt:
		b = binary.LittleEndian.AppendUint32(b, uint32(c.pid))
	}
	return b
}

func decodeCall(packet []byte) (call, error) {
	d := decoder{rest: packet}
	c := call{kind: kind(d.uint8()), number: d.uint32()}
	c.key = string(d.bytes(MaxKey))
	switch c.kind {
	case kindPut:
		c.record = append([]byte(nil), d.bytes(MaxRecord)...)
	case kindAdopt:
		c.pid = int(d.uint32())
		d.bad = d.bad || c.pid < 1 || c.pid > 1<<30
	case kindGet, kindList, kindDelete:
	default:
		d.bad = true
	}
	d.bad = d.bad || c.key == "" && c.kind != kindList
	return c, d.err()
}

func (a answer) encode() []byte {
	b := append(make([]byte, 0, 256), byte(a.kind))
	b = binary.LittleEndian.AppendUint32(b, a.number)
	if a.kind == kindExit {
		b = appendBytes(b, a.entries[0].Key)
		return appendProcess(b, a.entries[0].Process)
	}
	b = append(b, byte(a.code))
	b = appendBytes(b, a.text[:min(len(a.text), maxText)])
	b = append(b, flag(a.more))
	for _, e := range a.entries {
		b = appendEntry(b, e)
	}
	return b
}

func decodeAnswer(packet []byte) (answer, error) {
	d := decoder{rest: packet}
	a := answer{kind: kind(d.uint8()), number: d.uint32()}
	switch a.kind {
	case kindExit:
		key := string(d.bytes(MaxKey))
		a.entries = []Entry{{Key: key, Process: d.process()}}
	case kindReply:
		a.code = code(d.uint8())
		a.text = string(d.bytes(maxText))
		a.more = d.flag()
		for !d.bad && len(d.rest) > 0 {
			a.entries = append(a.entries, d.entry())
		}
	default:
		d.bad = true
	}
	return a, d.err()
}

func appendEntry(b []byte, e Entry) []byte {
	b = appendBytes(b, e.Key)
	b = appendBytes(b, e.Record)
	b = append(b, flag(e.Process != nil))
	if e.Process != nil {
		b = appendProcess(b, e.Process)
	}
	return b
}

func appendProcess(b []byte, p *Process) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(p.PID))
	b = binary.LittleEndian.AppendUint64(b, p.StartTime)
	b = append(b, flag(p.Exited))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Status))
	var at int64
	if !p.At.IsZero() {
		at = p.At.UnixNano()
	}
	return binary.LittleEndian.AppendUint64(b, uint64(at))
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// decoder takes values off a packet. After the first that is not there, or not
// valid, it is bad and returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.rest) {
		d.bad = true
		return make([]byte, min(n, 8))
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) uint8() uint8   { return d.take(1)[0] }
func (d *decoder) uint32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) uint64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *decoder) flag() bool {
	v := d.uint8()
	d.bad = d.bad || v > 1
	return v == 1
}

func (d *decoder) bytes(limit int) []byte {
	n := d.uint32()
	if d.bad || uint64(n) > uint64(limit) || int(n) > len(d.rest) {
		d.bad = true
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) process() *Process {
	p := &Process{PID: int(int32(d.uint32())), StartTime: d.uint64(), Exited: d.flag()}
	p.Status = syscall.WaitStatus(d.uint32())
	if at := int64(d.uint64()); at != 0 {
		p.At = time.Unix(0, at)
	}
	return p
}

func (d *decoder) entry() Entry {
	e := Entry{Key: string(d.bytes(MaxKey))}
	e.Record = append([]byte(nil), d.bytes(MaxRecord)...)
	if d.flag() {
		e.Process = d.process()
	}
	return e
}

func (d *decoder) err() error {
	if d.bad || len(d.rest) > 0 {
		return errMalformed
	}
	return nil
}
