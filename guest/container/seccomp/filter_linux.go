package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrProfile is wrapped by every error that lies in a filter's description.
var ErrProfile = errors.New("linux.seccomp")

// A Filter is a compiled filter. It is immutable.
type Filter struct {
	flags uint32
	insns []byte
}

// Flags are the SECCOMP_FILTER_FLAG_* to load the filter with.
func (f *Filter) Flags() uint32 { return f.flags }

// Instructions is the program: struct sock_filter, in the machine's byte order.
// It must not be changed.
func (f *Filter) Instructions() []byte { return f.insns }

// MarshalBinary encodes f for storage, to be read by UnmarshalBinary on the same
// machine.
func (f *Filter) MarshalBinary() ([]byte, error) {
	return append(binary.LittleEndian.AppendUint32(nil, f.flags), f.insns...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (f *Filter) UnmarshalBinary(b []byte) error {
	if len(b) < 4+insnSize || (len(b)-4)%insnSize != 0 || len(b) > 4+maxInsns*insnSize {
		return errors.New("seccomp: not a stored filter")
	}
	f.flags, f.insns = binary.LittleEndian.Uint32(b), slices.Clone(b[4:])
	return nil
}

// maxCached bounds the memory of cached filters: callers' profiles are many only
// by intent.
const maxCached = 64

var cache struct {
	mu      sync.Mutex
	filters map[[2]uint64]*Filter
	seeds   [2]maphash.Seed
}

// Compile compiles p. The result is cached by content: compiling the same profile
// again costs a hash over it. It is safe for concurrent use.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if cache.filters == nil {
		cache.filters = make(map[[2]uint64]*Filter)
		cache.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	}
	// The seeds are random, so nobody can make two profiles collide on purpose.
	key := [2]uint64{hashProfile(cache.seeds[0], p), hashProfile(cache.seeds[1], p)}
	if f := cache.filters[key]; f != nil {
		return f, nil
	}
	f, err := compile(p)
	if err != nil {
		return nil, err
	}
	if len(cache.filters) >= maxCached {
		clear(cache.filters)
	}
	cache.filters[key] = f
	return f, nil
}

func hashProfile(seed maphash.Seed, p *specs.LinuxSeccomp) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	str := func(s string) {
		h.WriteString(s)
		h.WriteByte(0)
	}
	num := func(n uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
	opt := func(n *uint) {
		if n == nil {
			num(1 << 63)
		} else {
			num(uint64(*n))
		}
	}
	str(string(p.DefaultAction))
	opt(p.DefaultErrnoRet)
	num(uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		str(string(a))
	}
	num(uint64(len(p.Flags)))
	for _, f := range p.Flags {
		str(string(f))
	}
	str(p.ListenerPath)
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		num(uint64(len(s.Names)))
		for _, n := range s.Names {
			str(n)
		}
		str(string(s.Action))
		opt(s.ErrnoRet)
		num(uint64(len(s.Args)))
		for _, a := range s.Args {
			num(uint64(a.Index))
			num(a.Value)
			num(a.ValueTwo)
			str(string(a.Op))
		}
	}
	return h.Sum64()
}

// DefaultProfile is moby's default profile for a process with the bounding
// capabilities caps ("CAP_CHOWN"), with AF_VSOCK closed on every architecture:
// the multiplexer socketcall of 32-bit x86, whose arguments no filter can see,
// gets ENOSYS, on which C libraries use the plain calls.
func DefaultProfile(caps []string) (*specs.LinuxSeccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	p, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	CloseSocketcall(p)
	return p, nil
}

// CloseSocketcall makes socketcall fail with ENOSYS in p.
func CloseSocketcall(p *specs.LinuxSeccomp) {
	const name = "socketcall"
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		if slices.Contains(s.Names, name) {
			s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == name })
		}
	}
	enosys := uint(unix.ENOSYS)
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
		Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &enosys,
	})
}

var defaults struct {
	mu      sync.Mutex
	filters map[string]*Filter
}

// Default is DefaultProfile, compiled, and cached by caps.
func Default(caps []string) (*Filter, error) {
	sorted := slices.Sorted(slices.Values(caps))
	key := fmt.Sprint(sorted)
	defaults.mu.Lock()
	defer defaults.mu.Unlock()
	if f := defaults.filters[key]; f != nil {
		return f, nil
	}
	p, err := DefaultProfile(sorted)
	if err != nil {
		return nil, err
	}
	f, err := compile(p)
	if err != nil {
		return nil, err
	}
	if defaults.filters == nil || len(defaults.filters) >= maxCached {
		defaults.filters = make(map[string]*Filter)
	}
	defaults.filters[key] = f
	return f, nil
}
