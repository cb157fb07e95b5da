package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The kernel's bits of a device access, and the device types.
const (
	accMknod = 1
	accRead  = 2
	accWrite = 4
	accAll   = accMknod | accRead | accWrite

	typeBlock = 1
	typeChar  = 2
)

// alwaysAllowed are the devices that every container may use, whatever its rules
// say, as the OCI's runtimes agree: making any node (using it is another matter),
// and null, zero, full, random, urandom, tty, console, ptmx and terminals.
var alwaysAllowed = []specs.LinuxDeviceCgroup{
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	charDevice(1, 3), charDevice(1, 5), charDevice(1, 7), charDevice(1, 8), charDevice(1, 9),
	charDevice(5, 0), charDevice(5, 1), charDevice(5, 2), charDevice(136, -1),
}

func charDevice(major, minor int64) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: "rwm"}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

// eBPF: operations and registers, as the kernel numbers them.
const (
	opLoadWord = 0x61 // dst = *(u32 *)(src + off)
	opAnd32    = 0x54
	opShift32  = 0x74 // right
	opMove32   = 0xb4
	opExit     = 0x95
	opJumpNE32 = 0x56
	opJump     = 0x05
	opJumpSet  = 0x46 // jump if dst & imm, 32 bits

	rResult, rContext, rType, rAccess, rMajor, rMinor = 0, 1, 2, 3, 4, 5
)

type insn struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// deviceProgram translates rules, of which the last that matches decides, for each
// of read, write and mknod by itself. So the program walks them backwards with
// the access still to be decided in a register. nil means that everything is
// allowed and no program is needed.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]insn, error) {
	if n := len(rules); n > 0 && allowsAll(rules[n-1]) {
		return nil, nil
	}
	prog := []insn{
		{op: opLoadWord, dst: rType, src: rContext, off: 0},
		{op: opLoadWord, dst: rAccess, src: rContext, off: 0},
		{op: opAnd32, dst: rType, imm: 0xffff},
		{op: opShift32, dst: rAccess, imm: 16},
		{op: opLoadWord, dst: rMajor, src: rContext, off: 4},
		{op: opLoadWord, dst: rMinor, src: rContext, off: 8},
	}
	all := append(rules[:len(rules):len(rules)], alwaysAllowed...)
	for i := len(all) - 1; i >= 0; i-- {
		code, err := deviceRule(all[i])
		if err != nil {
			return nil, fmt.Errorf("%w: devices[%d]: %w", ErrResources, i, err)
		}
		prog = append(prog, code...)
	}
	return append(prog, insn{op: opMove32, dst: rResult, imm: 0}, insn{op: opExit}), nil
}

func allowsAll(r specs.LinuxDeviceCgroup) bool {
	acc, err := accessBits(r.Access)
	return err == nil && r.Allow && (r.Type == "" || r.Type == "a") && r.Major == nil && r.Minor == nil && acc == accAll
}

func deviceRule(r specs.LinuxDeviceCgroup) ([]insn, error) {
	acc, err := accessBits(r.Access)
	if err != nil {
		return nil, err
	}
	var body []insn
	if r.Allow {
		body = []insn{
			{op: opAnd32, dst: rAccess, imm: int32(^acc & accAll)},
			{op: opJumpNE32, dst: rAccess, off: 2, imm: 0},
			{op: opMove32, dst: rResult, imm: 1},
			{op: opExit},
		}
	} else {
		body = []insn{
			{op: opJumpSet, dst: rAccess, off: 1, imm: int32(acc)},
			{op: opJump, off: 2},
			{op: opMove32, dst: rResult, imm: 0},
			{op: opExit},
		}
	}
	var tests []insn
	test := func(reg uint8, v int64) { tests = append(tests, insn{op: opJumpNE32, dst: reg, imm: int32(v)}) }
	switch r.Type {
	case "c":
		test(rType, typeChar)
	case "b":
		test(rType, typeBlock)
	case "", "a":
	default:
		return nil, fmt.Errorf("unknown type %q", r.Type)
	}
	for _, n := range []struct {
		reg   uint8
		value *int64
		name  string
	}{{rMajor, r.Major, "major"}, {rMinor, r.Minor, "minor"}} {
		if n.value == nil || *n.value == -1 {
			continue
		}
		if *n.value < 0 || *n.value > 1<<20-1 {
			return nil, fmt.Errorf("%s: %d is not a device number", n.name, *n.value)
		}
		test(n.reg, *n.value)
	}
	for i := range tests {
		tests[i].off = int16(len(tests) - 1 - i + len(body))
	}
	return append(tests, body...), nil
}

func accessBits(s string) (int, error) {
	acc := 0
	for _, r := range s {
		switch r {
		case 'r':
			acc |= accRead
		case 'w':
			acc |= accWrite
		case 'm':
			acc |= accMknod
		default:
			return 0, fmt.Errorf("unknown access %q", s)
		}
	}
	return acc, nil
}

func encode(prog []insn) []byte {
	b := make([]byte, 0, len(prog)*8)
	for _, in := range prog {
		b = append(b, in.op, in.dst|in.src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(in.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(in.imm))
	}
	return b
}

// programs are loaded once and attached to many groups.
var programs struct {
	mu  sync.Mutex
	fds map[string]int
}

const maxPrograms = 64

// SetDevices makes rules the group's device filter, in place of an earlier one.
func (g *Group) SetDevices(rules []specs.LinuxDeviceCgroup) error {
	prog, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	dir, err := unix.Open(g.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", g.path, err)
	}
	defer unix.Close(dir)
	old, err := attached(dir)
	if err != nil {
		return fmt.Errorf("cgroup %s: list device filters: %w", g.path, err)
	}
	if prog != nil {
		replaced := -1
		if len(old) > 0 {
			// Replacing leaves no moment without a filter, and works with the same one.
			if replaced, err = openProgram(old[0]); err != nil {
				return fmt.Errorf("cgroup %s: open the old device filter: %w", g.path, err)
			}
			defer unix.Close(replaced)
			old = old[1:]
		}
		if err := attachProgram(dir, encode(prog), replaced); err != nil {
			return fmt.Errorf("cgroup %s: device filter: %w", g.path, err)
		}
	}
	for _, id := range old {
		if err := detach(dir, id); err != nil {
			return fmt.Errorf("cgroup %s: remove the old device filter: %w", g.path, err)
		}
	}
	return nil
}

// attachment is the kernel's argument of BPF_PROG_ATTACH and BPF_PROG_DETACH.
type attachment struct{ target, prog, kind, flags, replaced uint32 }

// attachProgram attaches the program, in place of the one with the descriptor
// replaced unless that is negative.
func attachProgram(dir int, code []byte, replaced int) error {
	programs.mu.Lock()
	defer programs.mu.Unlock()
	fd, ok := programs.fds[string(code)]
	if !ok {
		var err error
		if fd, err = load(code); err != nil {
			return fmt.Errorf("load: %w", err)
		}
		if programs.fds == nil {
			programs.fds = make(map[string]int)
		}
		if len(programs.fds) >= maxPrograms {
			for _, fd := range programs.fds {
				unix.Close(fd)
			}
			clear(programs.fds)
		}
		programs.fds[string(code)] = fd
	}
	attr := attachment{target: uint32(dir), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if replaced >= 0 {
		attr.flags |= unix.BPF_F_REPLACE
		attr.replaced = uint32(replaced)
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func load(code []byte) (int, error) {
	license := []byte("Apache\x00")
	var pin runtime.Pinner // the kernel gets their addresses as numbers
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr := struct {
		kind, count   uint32
		code, license uint64
		level, size   uint32
		log           uint64
		version, flag uint32
		name          [16]byte
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	copy(attr.name[:], "berth_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return fd, err
}

// attached lists the programs at the group itself, by ID.
func attached(dir int) ([]uint32, error) {
	ids := make([]uint32, 64)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	attr := struct {
		target, kind, query, flags uint32
		ids                        uint64
		count                      uint32
		_                          uint32
	}{target: uint32(dir), kind: unix.BPF_CGROUP_DEVICE, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, err
	}
	return ids[:min(int(attr.count), len(ids))], nil
}

func openProgram(id uint32) (int, error) {
	attr := struct{ id, next, flags uint32 }{id: id}
	return bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func detach(dir int, id uint32) error {
	fd, err := openProgram(id)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := attachment{target: uint32(dir), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE}
	_, err = bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EAGAIN, unix.EINTR: // the verifier was interrupted
		default:
			return -1, errno
		}
	}
}
