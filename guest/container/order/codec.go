package order

import (
	"encoding/binary"
	"errors"
	"unsafe"
)

// ErrBroken is returned for bytes that are not an Order.
var ErrBroken = errors.New("order: broken encoding")

// Encode appends o's encoding to b.
func Encode(b []byte, o *Order) []byte {
	c := codec{buf: append(b, Version), writing: true}
	c.order(o)
	return c.buf
}

// Decode reads an Order. Its strings point into b, which must not change.
func Decode(b []byte) (*Order, error) {
	if len(b) == 0 || b[0] != Version {
		return nil, ErrBroken
	}
	o := new(Order)
	c := codec{buf: b[1:]}
	c.order(o)
	if c.broken || len(c.buf) != 0 {
		return nil, ErrBroken
	}
	return o, nil
}

// codec writes or reads: one description of the fields serves both, so that the
// two cannot differ.
type codec struct {
	buf     []byte
	writing bool
	broken  bool
}

func (c *codec) order(o *Order) {
	c.bools(&o.Exec, &o.ParentHooks, &o.NewConsole, &o.NewTime, &o.Loopback, &o.ShareRoot, &o.RootRO, &o.BindDevices, &o.PropRec, &o.NewNet, &o.Guest)
	c.ints(&o.Start, &o.Pending, &o.MountNS, &o.Extra, &o.ExtraCount, &o.RootTree)
	list(c, &o.Joins, (*codec).join)
	c.strs(&o.TimeOffsets, &o.Keyring, &o.Hostname, &o.Domainname, &o.Rootfs)
	c.u64(&o.Propagation)
	list(c, &o.Sysctls, (*codec).pair)
	list(c, &o.Mounts, (*codec).mount)
	list(c, &o.Devices, (*codec).device)
	list(c, &o.Masked, (*codec).str)
	list(c, &o.Readonly, (*codec).str)
	list(c, &o.CreateHooks, (*codec).hook)
	list(c, &o.StartHooks, (*codec).hook)
	c.process(&o.Process)
}

func (c *codec) join(j *Join) { c.ints(&j.File, &j.Kind) }

func (c *codec) mount(m *Mount) {
	c.strs(&m.Dest, &m.Type, &m.Source)
	c.ints(&m.Tree)
	c.bools(&m.Recursive, &m.RecProp, &m.CopyUp, &m.Remount)
	list(c, &m.Params, (*codec).pair)
	for _, p := range []*uint64{&m.Attrs, &m.Clear, &m.RecAttrs, &m.RecClear, &m.Propagation} {
		c.u64(p)
	}
}

func (c *codec) device(d *Device) {
	c.str(&d.Path)
	c.u64(&d.Dev)
	c.u32(&d.Mode)
	c.u32(&d.UID)
	c.u32(&d.GID)
}

func (c *codec) hook(h *Hook) {
	c.strs(&h.Path, &h.State)
	list(c, &h.Args, (*codec).str)
	list(c, &h.Env, (*codec).str)
	c.ints(&h.TimeoutMS)
}

func (c *codec) rlimit(r *Rlimit) {
	c.ints(&r.Kind)
	c.u64(&r.Soft)
	c.u64(&r.Hard)
}

func (c *codec) process(p *Process) {
	list(c, &p.Args, (*codec).str)
	list(c, &p.Env, (*codec).str)
	c.str(&p.Cwd)
	c.u32(&p.UID)
	c.u32(&p.GID)
	list(c, &p.Groups, (*codec).u32)
	list(c, &p.Rlimits, (*codec).rlimit)
	c.ints(&p.Umask, &p.Height, &p.Width, &p.IOPriority, &p.MemPolicy)
	c.bools(&p.Terminal, &p.SetCaps, &p.NoNewPrivs)
	for _, v := range []*uint64{&p.Bounding, &p.Effective, &p.Inheritable, &p.Permitted, &p.Amb} {
		c.u64(v)
	}
	personality := uint64(p.Personality)
	c.u64(&personality)
	p.Personality = int64(personality)
	c.u32(&p.SeccompFlags)
	for _, b := range []*[]byte{&p.Sched, &p.MemNodes, &p.FinalCPUs, &p.Seccomp} {
		c.bytes(b)
	}
}

func (c *codec) pair(p *Pair) { c.strs(&p.Key, &p.Value) }

// list handles a slice. An element takes at least one byte, which bounds what a
// broken length can allocate.
func list[T any](c *codec, s *[]T, item func(*codec, *T)) {
	n := uint64(len(*s))
	c.u64(&n)
	if !c.writing {
		if n > uint64(len(c.buf)) {
			c.broken = true
			return
		}
		if n == 0 {
			return
		}
		*s = make([]T, n)
	}
	for i := range *s {
		if c.broken {
			return
		}
		item(c, &(*s)[i])
	}
}

func (c *codec) u64(v *uint64) {
	if c.writing {
		c.buf = binary.AppendUvarint(c.buf, *v)
		return
	}
	x, n := binary.Uvarint(c.buf)
	if n <= 0 {
		c.broken, c.buf = true, nil
		return
	}
	*v, c.buf = x, c.buf[n:]
}

func (c *codec) u32(v *uint32) {
	x := uint64(*v)
	c.u64(&x)
	if x > 1<<32-1 {
		c.broken = true
	}
	*v = uint32(x)
}

func (c *codec) ints(vs ...*int) {
	for _, v := range vs {
		x := uint64(*v)<<1 ^ uint64(*v>>63)
		c.u64(&x)
		*v = int(x>>1) ^ -int(x&1)
	}
}

func (c *codec) bools(vs ...*bool) {
	var x uint64
	for i, v := range vs {
		if *v {
			x |= 1 << i
		}
	}
	c.u64(&x)
	for i, v := range vs {
		*v = x>>i&1 != 0
	}
	if x>>len(vs) != 0 {
		c.broken = true
	}
}

func (c *codec) bytes(b *[]byte) {
	n := uint64(len(*b))
	c.u64(&n)
	if c.writing {
		c.buf = append(c.buf, *b...)
		return
	}
	if n > uint64(len(c.buf)) {
		c.broken, c.buf = true, nil
		return
	}
	if n > 0 {
		*b, c.buf = c.buf[:n:n], c.buf[n:]
	}
}

func (c *codec) str(s *string) {
	if c.writing {
		n := uint64(len(*s))
		c.u64(&n)
		c.buf = append(c.buf, *s...)
		return
	}
	var b []byte
	c.bytes(&b)
	*s = unsafe.String(unsafe.SliceData(b), len(b))
}

func (c *codec) strs(ss ...*string) {
	for _, s := range ss {
		c.str(s)
	}
}
