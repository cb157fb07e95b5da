package seccomp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	insnSize = 8    // sizeof(struct sock_filter)
	maxInsns = 4096 // BPF_MAXINSNS

	x32Bit = 0x40000000

	// Offsets in struct seccomp_data; an argument's low half comes first on both
	// of the machines this runs on.
	offNumber = 0
	offArch   = 4
	offArgs   = 16

	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

// machine is one architecture that the kernel can run, with its numbers.
type machine struct {
	name   specs.Arch
	info   *arch.Info
	narrow bool // arguments have 32 bits
}

// machines lists what a kernel of this architecture can run, itself first.
func machines() []machine {
	if runtime.GOARCH == "arm64" {
		return []machine{{specs.ArchAARCH64, arch.AARCH64, false}, {specs.ArchARM, arch.ARM, true}}
	}
	return []machine{
		{specs.ArchX86_64, arch.X86_64, false}, {specs.ArchX86, arch.I386, true}, {specs.ArchX32, arch.X32, true},
	}
}

// number is the number of the system call with a kernel's name for it. The table
// for arm64 has an older one for what every program there calls to look at a file.
func (m machine) number(name string) (nr int, ok bool) {
	if m.name == specs.ArchAARCH64 && name == "newfstatat" {
		name = "fstatat"
	}
	nr, ok = m.info.SyscallNames[name]
	return nr, ok
}

var allArches = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS,
	specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC,
	specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

func compile(p *specs.LinuxSeccomp) (*Filter, error) {
	flags, err := filterFlags(p)
	if err != nil {
		return nil, err
	}
	for _, a := range p.Architectures {
		if !slices.Contains(allArches, a) {
			return nil, fmt.Errorf("%w: architectures: unknown architecture %q", ErrProfile, a)
		}
	}
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("%w: defaultAction: %w", ErrProfile, err)
	}
	rules, err := parseRules(p, def)
	if err != nil {
		return nil, err
	}
	prog := program(p, def, rules)
	if len(prog) > maxInsns {
		return nil, fmt.Errorf("%w: the filter needs %d instructions, the kernel takes %d", ErrProfile, len(prog), maxInsns)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	f := &Filter{flags: flags, insns: make([]byte, 0, len(raw)*insnSize)}
	for _, in := range raw {
		f.insns = binary.NativeEndian.AppendUint16(f.insns, in.Op)
		f.insns = append(f.insns, in.Jt, in.Jf)
		f.insns = binary.NativeEndian.AppendUint32(f.insns, in.K)
	}
	return f, nil
}

func filterFlags(p *specs.LinuxSeccomp) (uint32, error) {
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return 0, fmt.Errorf("%w: listenerPath: user notification is not supported", ErrProfile)
	}
	var flags uint32
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // one thread only: nothing to synchronise
		default:
			return 0, fmt.Errorf("%w: flags: unsupported flag %q", ErrProfile, f)
		}
	}
	return flags, nil
}

// action is what the filter returns for a.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 0xffff {
			return 0, fmt.Errorf("errnoRet %d is too large", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	}
	if errno != nil {
		return 0, fmt.Errorf("errnoRet cannot be used with action %q", a)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("action %q (user notification) is not supported", a)
	}
	return 0, fmt.Errorf("unknown action %q", a)
}

// rule is what happens to one system call when all conditions hold.
type rule struct {
	conds []specs.LinuxSeccompArg
	ret   uint32
}

// parseRules collects the rules by the system call's name.
func parseRules(p *specs.LinuxSeccomp, def uint32) (map[string][]rule, error) {
	rules := make(map[string][]rule)
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		where := func(err error) error { return fmt.Errorf("%w: syscalls[%d]: %w", ErrProfile, i, err) }
		if len(s.Names) == 0 {
			continue // moby's own profiles have entries that an exclusion emptied
		}
		ret, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, where(err)
		}
		for _, a := range s.Args {
			if err := checkArg(a); err != nil {
				return nil, where(err)
			}
		}
		if ret == def {
			continue
		}
		for _, name := range s.Names {
			if name == "" {
				return nil, where(fmt.Errorf("empty system call name"))
			}
			if !sameArgTwice(s.Args) {
				rules[name] = append(rules[name], rule{s.Args, ret})
				continue
			}
			for j := range s.Args {
				rules[name] = append(rules[name], rule{s.Args[j : j+1], ret})
			}
		}
	}
	return rules, nil
}

func checkArg(a specs.LinuxSeccompArg) error {
	if a.Index > 5 {
		return fmt.Errorf("args: index %d: a system call has arguments 0 to 5", a.Index)
	}
	switch a.Op {
	case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		return nil
	}
	return fmt.Errorf("args: unknown operator %q", a.Op)
}

func sameArgTwice(args []specs.LinuxSeccompArg) bool {
	var seen [6]bool
	for _, a := range args {
		if seen[a.Index] {
			return true
		}
		seen[a.Index] = true
	}
	return false
}

// program puts the architectures' parts together.
func program(p *specs.LinuxSeccomp, def uint32, rules map[string][]rule) []bpf.Instruction {
	parts := make(map[specs.Arch][]bpf.Instruction)
	var order []machine
	for i, m := range machines() {
		if i == 0 || slices.Contains(p.Architectures, m.name) {
			parts[m.name] = m.part(rules, def)
			order = append(order, m)
		}
	}
	kill := bpf.Instruction(bpf.RetConstant{Val: retKillProcess})
	out := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: 4}}
	for _, m := range order {
		if m.name == specs.ArchX32 {
			continue // shares x86_64's identity
		}
		body := []bpf.Instruction{bpf.LoadAbsolute{Off: offNumber, Size: 4}}
		if m.name == specs.ArchX86_64 {
			x32 := parts[specs.ArchX32]
			if x32 == nil {
				x32 = []bpf.Instruction{kill}
			}
			body = append(body, branch(x32Bit, parts[m.name], x32)...)
		} else {
			body = append(body, parts[m.name]...)
		}
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(m.info.ID), SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		out = append(out, body...)
	}
	return append(out, kill)
}

// intArgs are system calls whose arguments the kernel cuts down to 32 bits before
// it looks at them, on 64-bit architectures too, and which profiles permit with
// "not equal": a full comparison would let 1<<32 | AF_VSOCK through to where it
// is AF_VSOCK again.
var intArgs = []string{"socket", "socketpair"}

// span is a range of system calls with one outcome: it reaches up to the next
// span's first number.
type span struct {
	first  uint32
	rules  []rule // tried in order; then ret
	ret    uint32
	narrow bool // compare 32 bits
}

// part decides over one architecture's numbers, the number being loaded.
func (m machine) part(rules map[string][]rule, def uint32) []bpf.Instruction {
	bit := uint32(m.info.SeccompMask)
	var calls []span
	for name, rs := range rules {
		nr, ok := m.number(name)
		if !ok {
			continue
		}
		s := span{first: uint32(nr) | bit, rules: rs, ret: def, narrow: m.narrow || slices.Contains(intArgs, name)}
		if i := slices.IndexFunc(rs, func(r rule) bool { return len(r.conds) == 0 }); i >= 0 {
			s.rules, s.ret = nil, rs[i].ret
		}
		calls = append(calls, s)
	}
	slices.SortFunc(calls, func(a, b span) int { return cmp.Compare(a.first, b.first) })

	spans := []span{{first: bit, ret: def}}
	add := func(s span) {
		last := &spans[len(spans)-1]
		switch {
		case len(last.rules) == 0 && len(s.rules) == 0 && last.ret == s.ret:
		case last.first == s.first:
			*last = s
		default:
			spans = append(spans, s)
		}
	}
	newer := def
	if def != retAllow && def != retLog {
		newer = retErrno | uint32(unix.ENOSYS)
	}
	for i, c := range calls {
		add(c)
		switch {
		case i+1 == len(calls):
			add(span{first: c.first + 1, ret: newer})
		case calls[i+1].first != c.first+1:
			add(span{first: c.first + 1, ret: def})
		}
	}
	return search(spans)
}

// search finds the span of the loaded number by bisection.
func search(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].leaf()
	}
	mid := len(spans) / 2
	return branch(spans[mid].first, search(spans[:mid]), search(spans[mid:]))
}

// branch runs high when the accumulator is at least limit, else low. A
// conditional jump reaches 255 instructions, a plain one any number.
func branch(limit uint32, low, high []bpf.Instruction) []bpf.Instruction {
	out := make([]bpf.Instruction, 0, 2+len(low)+len(high))
	if len(low) <= 255 {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: limit, SkipTrue: uint8(len(low))})
	} else {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: limit, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))})
	}
	return append(append(out, low...), high...)
}

// leaf tries the rules and returns.
func (s span) leaf() []bpf.Instruction {
	var out []bpf.Instruction
	for _, r := range s.rules {
		out = append(out, r.code(s.narrow)...)
	}
	return append(out, bpf.RetConstant{Val: s.ret})
}

// code returns r.ret when all conditions hold, and falls out of its end otherwise.
func (r rule) code(narrow bool) []bpf.Instruction {
	out := []bpf.Instruction{bpf.RetConstant{Val: r.ret}}
	for _, c := range slices.Backward(r.conds) {
		out = append(condition(c, uint8(len(out)), narrow), out...)
	}
	return out
}

// condition falls through when c holds and else skips the following rest
// instructions too.
func condition(c specs.LinuxSeccompArg, rest uint8, narrow bool) []bpf.Instruction {
	lowOff := uint32(offArgs + 8*c.Index)
	low := bpf.Instruction(bpf.LoadAbsolute{Off: lowOff, Size: 4})
	high := bpf.Instruction(bpf.LoadAbsolute{Off: lowOff + 4, Size: 4})
	lo, hi := uint32(c.Value), uint32(c.Value>>32)
	test := func(cond bpf.JumpTest, v uint32, yes, no uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: cond, Val: v, SkipTrue: yes, SkipFalse: no}
	}
	// lowPart compares the low halves, the high ones being equal or absent.
	var lowPart []bpf.Instruction
	switch c.Op {
	case specs.OpEqualTo:
		lowPart = []bpf.Instruction{low, test(bpf.JumpEqual, lo, 0, rest)}
	case specs.OpNotEqual:
		lowPart = []bpf.Instruction{low, test(bpf.JumpEqual, lo, rest, 0)}
	case specs.OpGreaterThan:
		lowPart = []bpf.Instruction{low, test(bpf.JumpGreaterThan, lo, 0, rest)}
	case specs.OpGreaterEqual:
		lowPart = []bpf.Instruction{low, test(bpf.JumpGreaterOrEqual, lo, 0, rest)}
	case specs.OpLessThan:
		lowPart = []bpf.Instruction{low, test(bpf.JumpGreaterOrEqual, lo, rest, 0)}
	case specs.OpLessEqual:
		lowPart = []bpf.Instruction{low, test(bpf.JumpGreaterThan, lo, rest, 0)}
	case specs.OpMaskedEqual:
		lowPart = []bpf.Instruction{low, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: lo},
			test(bpf.JumpEqual, uint32(c.ValueTwo), 0, rest)}
	}
	if narrow {
		return lowPart
	}
	n := uint8(len(lowPart))
	fail := n + rest
	var highPart []bpf.Instruction
	switch c.Op {
	case specs.OpEqualTo:
		highPart = []bpf.Instruction{high, test(bpf.JumpEqual, hi, 0, fail)}
	case specs.OpNotEqual:
		highPart = []bpf.Instruction{high, test(bpf.JumpEqual, hi, 0, n)}
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		highPart = []bpf.Instruction{high, test(bpf.JumpGreaterThan, hi, n+1, 0), test(bpf.JumpEqual, hi, 0, fail)}
	case specs.OpLessThan, specs.OpLessEqual:
		highPart = []bpf.Instruction{high, test(bpf.JumpGreaterThan, hi, fail+1, 0), test(bpf.JumpEqual, hi, 0, n)}
	case specs.OpMaskedEqual:
		highPart = []bpf.Instruction{high, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: hi},
			test(bpf.JumpEqual, uint32(c.ValueTwo>>32), 0, fail)}
	}
	return append(highPart, lowPart...)
}
