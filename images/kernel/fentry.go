package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// nop5 is what the kernel writes over a call that nobody traces.
var nop5 = []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}

// silenceEntries replaces the call to __fentry__ at the start of each function
// of an x86 module by a no-op, in place, as the kernel does at load when it
// finds the calls in __mcount_loc. Their relocations become R_X86_64_NONE.
// Other architectures' modules have no-ops from the compiler.
func silenceEntries(module []byte) error {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return err
	}
	if f.Machine != elf.EM_X86_64 {
		return nil
	}
	symbols, err := f.Symbols()
	if err != nil {
		return err
	}
	fentry := uint64(0)
	for i, s := range symbols {
		if s.Name == "__fentry__" {
			fentry = uint64(i + 1) // Symbols leaves out the first
		}
	}
	if fentry == 0 {
		return nil
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_RELA || int(s.Info) >= len(f.Sections) {
			continue
		}
		code := f.Sections[s.Info]
		if code.Flags&elf.SHF_EXECINSTR == 0 || code.Type != elf.SHT_PROGBITS {
			continue
		}
		if err := silenceSection(module, s, code, fentry); err != nil {
			return err
		}
	}
	return nil
}

func silenceSection(module []byte, relocations, code *elf.Section, fentry uint64) error {
	const entrySize = 24
	size := uint64(len(module))
	for _, s := range []*elf.Section{relocations, code} {
		if s.Offset > size || s.FileSize > size-s.Offset {
			return fmt.Errorf("section %s lies outside the file", s.Name)
		}
	}
	table := module[relocations.Offset : relocations.Offset+relocations.FileSize]
	text := module[code.Offset : code.Offset+code.FileSize]
	for ; len(table) >= entrySize; table = table[entrySize:] {
		info := binary.LittleEndian.Uint64(table[8:])
		if info>>32 != fentry {
			continue
		}
		at := binary.LittleEndian.Uint64(table) - 1 // the opcode's; the relocation is of its operand
		if at >= uint64(len(text)) || uint64(len(text))-at < 5 || text[at] != 0xe8 {
			return fmt.Errorf("section %s has no call at %#x", code.Name, at)
		}
		copy(text[at:], nop5)
		binary.LittleEndian.PutUint64(table[8:], uint64(elf.R_X86_64_NONE))
		binary.LittleEndian.PutUint64(table[16:], 0)
	}
	return nil
}
