package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is a system call as a filter sees it.
type call struct {
	arch specs.Arch
	name string
	nr   int // when name is empty
	args [6]uint64
}

// vm is a compiled filter in x/net/bpf's machine.
type vm struct {
	t  testing.TB
	vm *bpf.VM
}

func newVM(t testing.TB, f *Filter) vm {
	t.Helper()
	var raw []bpf.RawInstruction
	b := f.Instructions()
	for i := 0; i < len(b); i += insnSize {
		raw = append(raw, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(b[i:]), Jt: b[i+2], Jf: b[i+3], K: binary.NativeEndian.Uint32(b[i+4:]),
		})
	}
	insns, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the filter holds unknown instructions")
	}
	m, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return vm{t, m}
}

// run returns the filter's verdict. The machine loads big-endian words, as from a
// packet, so that is how the call is laid out.
func (v vm) run(c call) uint32 {
	v.t.Helper()
	var id uint32
	nr := c.nr
	for _, m := range machines() {
		if m.name != c.arch {
			continue
		}
		id = uint32(m.info.ID)
		if c.name != "" {
			n, ok := m.number(c.name)
			if !ok {
				v.t.Fatalf("%s has no %s", c.arch, c.name)
			}
			nr = n | m.info.SeccompMask
		}
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(nr))
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint64(b, 0)
	for _, a := range c.args {
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	got, err := v.vm.Run(b)
	if err != nil {
		v.t.Fatal(err)
	}
	return uint32(got)
}

func errnoRet(n uint) uint32 { return retErrno | uint32(n) }

func TestDefault(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("names amd64's architectures")
	}
	plain, err := Default([]string{"CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := Default([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(plain.Instructions())/insnSize)
	const x64, x86, x32 = specs.ArchX86_64, specs.ArchX86, specs.ArchX32
	for _, test := range []struct {
		f    *Filter
		c    call
		want uint32
	}{
		{plain, call{arch: x64, name: "read"}, retAllow},
		{plain, call{arch: x86, name: "read"}, retAllow},
		{plain, call{arch: x32, name: "read"}, retAllow},
		{plain, call{arch: x64, name: "mount"}, errnoRet(1)},
		{plain, call{arch: x86, name: "mount"}, errnoRet(1)},
		{admin, call{arch: x64, name: "mount"}, retAllow},
		{plain, call{arch: x64, name: "clone3"}, errnoRet(38)},
		{admin, call{arch: x64, name: "clone3"}, retAllow},
		{plain, call{arch: x64, name: "clone", args: [6]uint64{uint64(unix.SIGCHLD)}}, retAllow},
		{plain, call{arch: x64, name: "clone", args: [6]uint64{unix.CLONE_NEWUSER}}, errnoRet(1)},
		{plain, call{arch: x64, name: "personality", args: [6]uint64{8}}, retAllow},
		{plain, call{arch: x64, name: "personality", args: [6]uint64{0x0040000}}, errnoRet(1)},
		{plain, call{arch: x64, name: "personality", args: [6]uint64{8 | 1<<32}}, errnoRet(1)},
		// AF_VSOCK is closed on every architecture, also by the multiplexer.
		{plain, call{arch: x64, name: "socket", args: [6]uint64{unix.AF_INET}}, retAllow},
		{plain, call{arch: x64, name: "socket", args: [6]uint64{unix.AF_VSOCK}}, errnoRet(1)},
		{plain, call{arch: x86, name: "socket", args: [6]uint64{unix.AF_VSOCK}}, errnoRet(1)},
		{plain, call{arch: x32, name: "socket", args: [6]uint64{unix.AF_VSOCK}}, errnoRet(1)},
		{plain, call{arch: x86, name: "socket", args: [6]uint64{unix.AF_UNIX}}, retAllow},
		{admin, call{arch: x86, name: "socket", args: [6]uint64{unix.AF_VSOCK}}, errnoRet(1)},
		{plain, call{arch: x86, name: "socketcall"}, errnoRet(38)},
		{admin, call{arch: x86, name: "socketcall"}, errnoRet(38)},
		// What the profile has never heard of.
		{plain, call{arch: x64, nr: 9999}, errnoRet(38)},
		{plain, call{arch: x86, nr: 9999}, errnoRet(38)},
		{plain, call{arch: x64, nr: -1}, errnoRet(38)},
		{plain, call{arch: "other", nr: 1}, retKillProcess},
	} {
		if got := newVM(t, test.f).run(test.c); got != test.want {
			t.Errorf("%+v: %#x, want %#x", test.c, got, test.want)
		}
	}
}

// TestNumbers has what programs call most under the kernel's own names, with the
// numbers of asm/unistd.h.
func TestNumbers(t *testing.T) {
	for _, m := range []struct {
		machine
		want map[string]int
	}{
		{machine{specs.ArchAARCH64, arch.AARCH64, false}, map[string]int{"openat": 56, "read": 63, "newfstatat": 79, "fstat": 80, "statx": 291, "mmap": 222, "fcntl": 25,
			"lseek": 62, "statfs": 43, "fstatfs": 44, "truncate": 45, "ftruncate": 46, "fadvise64": 223, "sendfile": 71, "clone": 220, "execve": 221, "faccessat2": 439}},
		{machine{specs.ArchARM, arch.ARM, true}, map[string]int{"openat": 322, "fstatat64": 327, "mmap2": 192, "execve": 11}},
		{machine{specs.ArchX86_64, arch.X86_64, false}, map[string]int{"openat": 257, "newfstatat": 262, "fstat": 5, "statx": 332, "mmap": 9, "execve": 59}},
		{machine{specs.ArchX86, arch.I386, true}, map[string]int{"openat": 295, "fstatat64": 300, "mmap2": 192, "execve": 11}},
	} {
		for name, want := range m.want {
			if nr, ok := m.number(name); nr != want || !ok {
				t.Errorf("%s: %s is %d, %t, want %d", m.name, name, nr, ok, want)
			}
		}
	}
}

// TestVsockClosed sets bits that the kernel does not look at.
func TestVsockClosed(t *testing.T) {
	f, err := Default([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	v := newVM(t, f)
	for _, m := range machines() {
		for _, high := range []uint64{0, 1 << 32, 0xffffffff << 32} {
			if got := v.run(call{arch: m.name, name: "socket", args: [6]uint64{high | unix.AF_VSOCK}}); got == retAllow {
				t.Errorf("%s: AF_VSOCK is open by %#x", m.name, high|unix.AF_VSOCK)
			}
			if got := v.run(call{arch: m.name, name: "socket", args: [6]uint64{high | unix.AF_INET}}); got != retAllow {
				t.Errorf("%s: AF_INET is closed", m.name)
			}
		}
	}
}

// expected is the meaning of a profile, written down a second time and plainly.
func expected(p *specs.LinuxSeccomp, c call, narrow bool) (uint32, bool) {
	def, _ := action(p.DefaultAction, p.DefaultErrnoRet)
	matched, found := uint32(0), false
	for _, unconditional := range []bool{true, false} {
		for _, s := range p.Syscalls {
			ret, _ := action(s.Action, s.ErrnoRet)
			if !slices.Contains(s.Names, c.name) || ret == def || (len(s.Args) == 0) != unconditional || found {
				continue
			}
			count := 0
			for _, a := range s.Args {
				if holds(a, c.args[a.Index], narrow) {
					count++
				}
			}
			if count == len(s.Args) || sameArgTwice(s.Args) && count > 0 {
				matched, found = ret, true
			}
		}
	}
	return matched, found
}

func holds(a specs.LinuxSeccompArg, v uint64, narrow bool) bool {
	want, two := a.Value, a.ValueTwo
	if narrow {
		v, want, two = uint64(uint32(v)), uint64(uint32(want)), uint64(uint32(two))
	}
	switch a.Op {
	case specs.OpEqualTo:
		return v == want
	case specs.OpNotEqual:
		return v != want
	case specs.OpLessThan:
		return v < want
	case specs.OpLessEqual:
		return v <= want
	case specs.OpGreaterThan:
		return v > want
	case specs.OpGreaterEqual:
		return v >= want
	default:
		return v&want == two
	}
}

// TestRandomProfiles compares compiled filters with their meaning.
func TestRandomProfiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	names := []string{"read", "write", "close", "socket", "clone", "personality", "execve", "openat", "kill", "exit"}
	values := []uint64{0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 + 1, 1 << 63, ^uint64(0)}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActLog, specs.ActTrap, specs.ActKillProcess}
	pick := func(n int) int { return rng.IntN(n) }
	for range 300 {
		p := &specs.LinuxSeccomp{DefaultAction: actions[pick(len(actions))]}
		for _, m := range machines() {
			p.Architectures = append(p.Architectures, m.name)
		}
		for range 1 + pick(6) {
			s := specs.LinuxSyscall{Action: actions[pick(len(actions))]}
			for range 1 + pick(3) {
				s.Names = append(s.Names, names[pick(len(names))])
			}
			for range pick(4) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(pick(3)), Op: ops[pick(len(ops))],
					Value: values[pick(len(values))], ValueTwo: values[pick(len(values))]})
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		f, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		v := newVM(t, f)
		def, _ := action(p.DefaultAction, nil)
		for range 100 {
			m := machines()[pick(len(machines()))]
			c := call{arch: m.name, name: names[pick(len(names))]}
			for i := range 3 {
				c.args[i] = values[pick(len(values))]
			}
			want, found := expected(p, c, m.narrow || slices.Contains(intArgs, c.name))
			got := v.run(c)
			if found && got != want || !found && got != def && got != errnoRet(38) {
				t.Fatalf("%+v\n%+v: got %#x, want %#x (%v)", p, c, got, want, found)
			}
		}
	}
}

func TestBadProfiles(t *testing.T) {
	one := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	big, small := uint(1<<16), uint(1)
	for name, p := range map[string]*specs.LinuxSeccomp{
		"no default":       {},
		"default action":   {DefaultAction: "SCMP_ACT_MAYBE"},
		"default errno":    {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		"architecture":     {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"PDP11"}},
		"flag":             {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"FAST"}},
		"listener":         {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"notify":           one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActNotify}),
		"action":           one(specs.LinuxSyscall{Names: []string{"read"}, Action: "X"}),
		"errno of allow":   one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog, ErrnoRet: &small}),
		"empty name":       one(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActLog}),
		"argument's index": one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		"operator":         one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{{Op: "EQ"}}}),
	} {
		if _, err := Compile(p); !errors.Is(err, ErrProfile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTooLarge asks for more than the kernel takes.
func TestTooLarge(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for i := range uint64(1000) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: i, Op: specs.OpEqualTo}}})
	}
	if _, err := Compile(p); !errors.Is(err, ErrProfile) {
		t.Error(err)
	}
}

func TestStored(t *testing.T) {
	f, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var g Filter
	if err := g.UnmarshalBinary(b); err != nil || !slices.Equal(g.insns, f.insns) || g.flags != f.flags {
		t.Error(err)
	}
	for _, n := range []int{0, 3, 5, len(b) - 1} {
		if err := g.UnmarshalBinary(b[:n]); err == nil {
			t.Errorf("%d bytes were taken", n)
		}
	}
}

// TestKernel has the kernel check programs, by loading them into a thread that
// then ends.
func TestKernel(t *testing.T) {
	f, err := Default([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		result <- func() error {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return err
			}
			if err := load(f); err != nil {
				return err
			}
			for _, family := range []uintptr{unix.AF_VSOCK, 1<<32 | unix.AF_VSOCK} {
				if _, _, errno := unix.RawSyscall(unix.SYS_SOCKET, family, unix.SOCK_STREAM, 0); errno != unix.EPERM {
					return fmt.Errorf("socket family %#x: %w", family, errno)
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return fmt.Errorf("AF_UNIX: %w", err)
			}
			return unix.Close(fd)
		}()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func BenchmarkCompile(b *testing.B) {
	p, err := DefaultProfile(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			if _, err := compile(p); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			if _, err := Compile(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}
