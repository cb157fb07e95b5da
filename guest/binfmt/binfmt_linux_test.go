package binfmt

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strconv"
	"strings"
	"testing"
)

// TestRules takes the rules apart as the kernel does, and asks them about the
// beginnings of programs.
func TestRules(t *testing.T) {
	testRule(t, emulators["amd64"], "PCF", elf.EM_AARCH64, elf.EM_X86_64)
	testRule(t, emulators["arm64"], "PCF", elf.EM_X86_64, elf.EM_AARCH64)
	testRule(t, Rosetta("/run/rosetta"), "CF", elf.EM_X86_64, elf.EM_AARCH64)
}

// testRule wants h's rule to be for own programs and not for other ones.
func testRule(t *testing.T, h Handler, flags string, own, other elf.Machine) {
	t.Helper()
	rule := h.rule()
	if len(rule) >= 1920 { // the kernel's limit
		t.Errorf("%s: the rule has %d bytes", h.Name, len(rule))
	}
	field := strings.Split(rule[1:], ":")
	if len(field) != 7 || field[0] != h.Name || field[1] != "M" || field[2] != "" || field[5] != h.Interpreter || field[6] != flags {
		t.Fatalf("%s: the rule's fields are %q", h.Name, field)
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
		t.Fatalf("%s: %d bytes of magic, %d of mask", h.Name, len(magic), len(mask))
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
		{elf.ELFCLASS64, elf.ET_EXEC, own, true},
		{elf.ELFCLASS64, elf.ET_DYN, own, true},
		{elf.ELFCLASS64, elf.ET_REL, own, false},
		{elf.ELFCLASS64, elf.ET_DYN, other, false},
		{elf.ELFCLASS32, elf.ET_EXEC, elf.EM_386, false},
	} {
		if got := matches(tt.class, tt.kind, tt.machine); got != tt.want {
			t.Errorf("%s: %v %v %v: %t", h.Name, tt.class, tt.kind, tt.machine, got)
		}
	}
}
