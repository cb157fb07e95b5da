package vhostuser

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxRegions is how many memory regions one SET_MEM_TABLE can carry: the limit
// of the protocol without the CONFIGURE_MEM_SLOTS feature.
const maxRegions = 8

// regionInfo is a memory region as the front-end describes it.
type regionInfo struct {
	guestAddr  uint64 // guest-physical: descriptors use it
	size       uint64
	userAddr   uint64 // in the front-end's address space: ring addresses use it
	mmapOffset uint64 // where the region starts in its file
}

// region is a regionInfo that is mapped. data is the region and nothing else.
type region struct {
	regionInfo
	data    []byte
	mapping []byte // what munmap wants: data, from the start of its page
}

// memory is a guest's memory. It is immutable: a new table is a new memory.
// Whoever unmaps one has to know that no queue uses it.
type memory struct {
	regions []region
}

var errAddress = errors.New("address outside the guest's memory")

// mapMemory maps the regions of the files. The files stay the caller's.
func mapMemory(infos []regionInfo, fds []int) (_ *memory, err error) {
	if len(infos) > maxRegions || len(infos) != len(fds) {
		return nil, fmt.Errorf("memory table: %d regions with %d files, at most %d are possible", len(infos), len(fds), maxRegions)
	}
	m := &memory{}
	defer func() {
		if err != nil {
			m.unmap()
		}
	}()
	for i, info := range infos {
		if err := checkRegion(info, infos[:i]); err != nil {
			return nil, fmt.Errorf("memory region %d: %w", i, err)
		}
		r, err := mapRegion(info, fds[i])
		if err != nil {
			return nil, fmt.Errorf("memory region %d: %w", i, err)
		}
		m.regions = append(m.regions, r)
	}
	return m, nil
}

func checkRegion(info regionInfo, others []regionInfo) error {
	end := func(start uint64) (uint64, bool) { return start + info.size, start+info.size >= start }
	guestEnd, ok1 := end(info.guestAddr)
	userEnd, ok2 := end(info.userAddr)
	fileEnd, ok3 := end(info.mmapOffset)
	if info.size == 0 || !ok1 || !ok2 || !ok3 || fileEnd > math.MaxInt64-uint64(os.Getpagesize()) {
		return fmt.Errorf("size %#x is impossible", info.size)
	}
	if (info.guestAddr|info.userAddr|info.mmapOffset|info.size)&7 != 0 {
		return errors.New("not aligned to 8 bytes")
	}
	for _, o := range others {
		if info.guestAddr < o.guestAddr+o.size && o.guestAddr < guestEnd ||
			info.userAddr < o.userAddr+o.size && o.userAddr < userEnd {
			return errors.New("overlaps another region")
		}
	}
	return nil
}

func mapRegion(info regionInfo, fd int) (region, error) {
	// Without this seal the other side could truncate the file, and the next
	// access to the mapping would kill this process with SIGBUS.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return region{}, errors.New("not a memfd sealed against shrinking: use memory-backend-memfd with share=on")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return region{}, fmt.Errorf("stat: %w", err)
	}
	if st.Size < 0 || info.mmapOffset+info.size > uint64(st.Size) {
		return region{}, fmt.Errorf("ends at %#x of a file of %#x bytes", info.mmapOffset+info.size, st.Size)
	}
	// Huge pages need an offset aligned to their own size.
	page := max(uint64(os.Getpagesize()), uint64(st.Blksize))
	if page&(page-1) != 0 {
		page = uint64(os.Getpagesize())
	}
	slack := info.mmapOffset & (page - 1)
	length := info.size + slack
	if length > math.MaxInt {
		return region{}, fmt.Errorf("size %#x is impossible", info.size)
	}
	mapping, err := unix.Mmap(fd, int64(info.mmapOffset-slack), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return region{}, fmt.Errorf("mmap %#x bytes: %w", length, err)
	}
	// The guest's secrets have no place in this process's core dump.
	_ = unix.Madvise(mapping, unix.MADV_DONTDUMP)
	return region{regionInfo: info, mapping: mapping, data: mapping[slack:]}, nil
}

func (m *memory) unmap() {
	if m == nil {
		return
	}
	for _, r := range m.regions {
		_ = unix.Munmap(r.mapping)
	}
	m.regions = nil
}

// at returns the memory at a guest-physical address: n bytes, or fewer where
// the region ends before (another may follow). Nil means there is none.
func (m *memory) at(addr, n uint64) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guestAddr; addr >= r.guestAddr && off < r.size {
			return r.data[off : off+min(n, r.size-off)]
		}
	}
	return nil
}

// check reports whether n bytes at a guest-physical address exist.
func (m *memory) check(addr, n uint64) bool {
	if addr+n < addr {
		return false
	}
	for n > 0 {
		b := m.at(addr, n)
		if len(b) == 0 {
			return false
		}
		addr += uint64(len(b))
		n -= uint64(len(b))
	}
	return true
}

// read copies guest memory into p.
func (m *memory) read(addr uint64, p []byte) error {
	for len(p) > 0 {
		n := copy(p, m.at(addr, uint64(len(p))))
		if n == 0 {
			return errAddress
		}
		p = p[n:]
		addr += uint64(n)
	}
	return nil
}

// ring returns n bytes of one region at an address of the front-end's own
// address space, in which alone rings are given.
func (m *memory) ring(userAddr, n, align uint64) ([]byte, error) {
	if userAddr%align != 0 {
		return nil, fmt.Errorf("address %#x is not aligned to %d bytes", userAddr, align)
	}
	for i := range m.regions {
		r := &m.regions[i]
		off := userAddr - r.userAddr
		if userAddr < r.userAddr || off >= r.size {
			continue
		}
		if n > r.size-off {
			return nil, errAddress
		}
		b := r.data[off : off+n]
		// Regions are multiples of 8 in both address spaces, but the mapping of
		// one need not start at a multiple of 16.
		if uintptr(unsafe.Pointer(&b[0]))%uintptr(min(align, 8)) != 0 {
			return nil, fmt.Errorf("address %#x is not aligned here", userAddr)
		}
		return b, nil
	}
	return nil, errAddress
}
