package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strconv"
	"strings"
	"testing"
)

// TestRosettaRule takes the rule apart as the kernel does, and asks it about the
// beginnings of programs.
func TestRosettaRule(t *testing.T) {
	if len(rosettaRule) >= 1920 { // the kernel's limit
		t.Errorf("the rule has %d bytes", len(rosettaRule))
	}
	field := strings.Split(rosettaRule[1:], ":")
	if len(field) != 7 || field[0] != "rosetta" || field[1] != "M" || field[2] != "" || field[6] != "CF" {
		t.Fatalf("the rule's fields are %q", field)
	}
	raw := func(s string) []byte {
		text, err := strconv.Unquote(`"` + s + `"`)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	}
	magic, mask := raw(field[3]), raw(field[4])
	if len(magic) != len(mask) || len(magic) != 20 {
		t.Fatalf("%d bytes of magic, %d of mask", len(magic), len(mask))
	}
	matches := func(class elf.Class, kind elf.Type, machine elf.Machine) bool {
		var head bytes.Buffer
		ident := [16]byte{0x7f, 'E', 'L', 'F', byte(class), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
		binary.Write(&head, binary.LittleEndian, ident)
		binary.Write(&head, binary.LittleEndian, []uint16{uint16(kind), uint16(machine)})
		for i, b := range head.Bytes() {
			if b&mask[i] != magic[i]&mask[i] {
				return false
			}
		}
		return true
	}
	for _, tt := range []struct {
		class   elf.Class
		kind    elf.Type
		machine elf.Machine
		want    bool
	}{
		{elf.ELFCLASS64, elf.ET_EXEC, elf.EM_X86_64, true},
		{elf.ELFCLASS64, elf.ET_DYN, elf.EM_X86_64, true},
		{elf.ELFCLASS64, elf.ET_REL, elf.EM_X86_64, false},
		{elf.ELFCLASS64, elf.ET_DYN, elf.EM_AARCH64, false},
		{elf.ELFCLASS32, elf.ET_EXEC, elf.EM_386, false},
	} {
		if got := matches(tt.class, tt.kind, tt.machine); got != tt.want {
			t.Errorf("%v %v %v: %t", tt.class, tt.kind, tt.machine, got)
		}
	}
}
