package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Offsets in a 64-bit little-endian ELF file.
const (
	ehShoff, ehShentsize, ehShnum, ehShstrndx = 40, 58, 60, 62
	ehSize, shSize                            = 64, 64

	shtNull, shtNobits = 0, 8
)

// dropped names the sections that a module loads faster without. Each entry of
// each of them is relocated, and most are then sorted or patched, at every load;
// under emulation that was half of the time.
var dropped = map[string]string{
	".BTF":           "type information, which the kernel checks at length and only tracing programs read",
	".BTF.base":      "the same",
	"__mcount_loc":   "where functions can be traced, see silenceEntries",
	".orc_unwind":    "for exact stack traces through the module; without it they are guessed",
	".orc_unwind_ip": "the same",
	".orc_header":    "the same",
	".call_sites":    "for the mitigation retbleed=stuff, which is never a default",
}

// Slim returns a module without what only costs time at load: its signature,
// which an unlocked kernel verifies to no effect, the dropped sections, and the
// calls that only tracing uses. Section numbers stay as they are.
func Slim(module []byte) ([]byte, error) {
	if len(module) < ehSize || string(module[:6]) != "\x7fELF\x02\x01" {
		return nil, errors.New("not a 64-bit little-endian ELF file")
	}
	module = bytes.Clone(module)
	if err := silenceEntries(module); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	shoff, count := le.Uint64(module[ehShoff:]), int(le.Uint16(module[ehShnum:]))
	strndx := int(le.Uint16(module[ehShstrndx:]))
	if le.Uint16(module[ehShentsize:]) != shSize || strndx >= count ||
		shoff > uint64(len(module)) || uint64(count)*shSize > uint64(len(module))-shoff {
		return nil, errors.New("damaged section table")
	}
	headers := bytes.Clone(module[shoff : shoff+uint64(count)*shSize])
	section := func(i int) []byte { return headers[i*shSize : (i+1)*shSize] }
	body := func(h []byte) ([]byte, error) {
		offset, size := le.Uint64(h[24:]), le.Uint64(h[32:])
		if offset > uint64(len(module)) || size > uint64(len(module))-offset {
			return nil, errors.New("a section lies outside the file")
		}
		return module[offset : offset+size], nil
	}
	names, err := body(section(strndx))
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(bytes.Clone(module[:ehSize]))
	for i := range count {
		h := section(i)
		kind := le.Uint32(h[4:])
		if kind == shtNull {
			continue
		}
		name, err := cString(names, le.Uint32(h))
		if err != nil {
			return nil, err
		}
		if _, ok := dropped[strings.TrimPrefix(name, ".rela")]; ok {
			le.PutUint64(h[8:], 0)  // no flags: not loaded, not relocated, not found by name
			le.PutUint64(h[32:], 0) // no bytes
		}
		align := max(le.Uint64(h[48:]), 1)
		if align > 1<<12 {
			return nil, fmt.Errorf("section %s: alignment %d", name, align)
		}
		out.Write(make([]byte, -uint64(out.Len())&(align-1)))
		var data []byte
		if kind != shtNobits {
			if data, err = body(h); err != nil {
				return nil, err
			}
		}
		if out.Len()+len(data) > 2*len(module)+1<<20 {
			return nil, errors.New("sections overlap")
		}
		le.PutUint64(h[24:], uint64(out.Len()))
		out.Write(data)
	}
	out.Write(make([]byte, -out.Len()&7))
	image := append(out.Bytes(), headers...)
	le.PutUint64(image[ehShoff:], uint64(out.Len()))
	return image, nil
}

func cString(table []byte, offset uint32) (string, error) {
	if uint64(offset) >= uint64(len(table)) {
		return "", errors.New("a section's name lies outside the file")
	}
	end := bytes.IndexByte(table[offset:], 0)
	if end < 0 {
		return "", errors.New("a section's name does not end")
	}
	return string(table[offset : int(offset)+end]), nil
}
