package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// module describes a relocatable object for build.
type section struct {
	name       string
	kind       uint32
	flags      uint64
	link, info uint32
	entry      uint64
	data       []byte
}

// build lays out an x86 module: a function that calls __fentry__, its
// relocation, type information, call stacks and modinfo.
func build(modinfo string) []byte {
	le := binary.LittleEndian
	rela := func(offset, info uint64) []byte {
		b := le.AppendUint64(nil, offset)
		b = le.AppendUint64(b, info)
		return le.AppendUint64(b, ^uint64(3))
	}
	symbol := make([]byte, 48)
	le.PutUint32(symbol[24:], 1) // name of symbol 1
	symbol[28] = 0x10            // global, undefined
	sections := []section{
		{},
		{name: ".text", kind: 1, flags: 6, data: []byte{0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 0, 0, 0, 0xc3}},
		{name: ".rela.text", kind: 4, link: 6, info: 1, entry: 24, data: rela(5, 1<<32|4)},
		{name: ".BTF", kind: 1, data: []byte("types")},
		{name: ".orc_unwind_ip", kind: 1, flags: 2, data: make([]byte, 8)},
		{name: ".modinfo", kind: 1, flags: 2, data: []byte(modinfo)},
		{name: ".symtab", kind: 2, link: 7, info: 1, entry: 24, data: symbol},
		{name: ".strtab", kind: 3, data: []byte("\x00__fentry__\x00")},
		{name: ".bss", kind: 8, flags: 3, data: make([]byte, 64)},
		{name: ".BTF_ids", kind: 1, flags: 2, data: []byte("not type information")},
		{name: ".shstrtab", kind: 3},
	}
	names := []byte{0}
	offsets := make([]uint32, len(sections))
	for i, s := range sections[1:] {
		offsets[i+1] = uint32(len(names))
		names = append(append(names, s.name...), 0)
	}
	sections[len(sections)-1].data = names
	out := make([]byte, ehSize)
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 1)  // relocatable
	le.PutUint16(out[18:], 62) // x86-64
	le.PutUint32(out[20:], 1)
	le.PutUint16(out[52:], ehSize)
	le.PutUint16(out[ehShentsize:], shSize)
	le.PutUint16(out[ehShnum:], uint16(len(sections)))
	le.PutUint16(out[ehShstrndx:], uint16(len(sections)-1))
	var headers []byte
	for i, s := range sections {
		h := make([]byte, shSize)
		le.PutUint32(h, offsets[i])
		le.PutUint32(h[4:], s.kind)
		le.PutUint64(h[8:], s.flags)
		le.PutUint64(h[24:], uint64(len(out)))
		le.PutUint64(h[32:], uint64(len(s.data)))
		le.PutUint32(h[40:], s.link)
		le.PutUint32(h[44:], s.info)
		le.PutUint64(h[48:], 8)
		le.PutUint64(h[56:], s.entry)
		headers = append(headers, h...)
		if s.kind != shtNobits {
			out = append(out, s.data...)
			out = append(out, make([]byte, -len(out)&7)...)
		}
	}
	le.PutUint64(out[ehShoff:], uint64(len(out)))
	return append(out, headers...)
}

func TestSlim(t *testing.T) {
	original := build("name=m\x00")
	signed := append(bytes.Clone(original), "signature~Module signature appended~\n"...)
	slim, err := Slim(signed)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(slim, []byte("signature")) {
		t.Error("the signature is still there")
	}
	f, err := elf.NewFile(bytes.NewReader(slim))
	if err != nil {
		t.Fatal(err)
	}
	was, err := elf.NewFile(bytes.NewReader(original))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Sections) != len(was.Sections) {
		t.Fatalf("%d sections, had %d", len(f.Sections), len(was.Sections))
	}
	for i, s := range f.Sections {
		before, _ := was.Sections[i].Data()
		after, _ := s.Data()
		switch s.Name {
		case ".BTF", ".orc_unwind_ip":
			if s.Size != 0 || s.Flags != 0 {
				t.Errorf("%s: %d bytes, flags %v", s.Name, s.Size, s.Flags)
			}
		case ".text":
			if !bytes.Equal(after, []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0, 0, 0xc3}) {
				t.Errorf("text: % x", after)
			}
		case ".rela.text":
			if binary.LittleEndian.Uint64(after[8:]) != 0 {
				t.Errorf("the call's relocation is still there: % x", after)
			}
		default:
			if !bytes.Equal(before, after) || s.Size != was.Sections[i].Size || s.Flags != was.Sections[i].Flags {
				t.Errorf("%s changed", s.Name)
			}
		}
		if s.Addralign > 1 && s.Offset%s.Addralign != 0 {
			t.Errorf("%s lies at %#x", s.Name, s.Offset)
		}
	}
	again, err := Slim(slim)
	if err != nil || !bytes.Equal(again, slim) {
		t.Errorf("slimming twice changes it again (%v)", err)
	}
}

func FuzzSlim(f *testing.F) {
	f.Add(build("depends=a,b\x00"))
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Fuzz(func(t *testing.T, module []byte) {
		slim, err := Slim(module)
		if err != nil {
			return
		}
		if len(slim) > 4*len(module)+2<<20 {
			t.Errorf("%d bytes became %d", len(module), len(slim))
		}
		modinfo(slim)
	})
}

// tree writes modules given as "name: dependencies".
func tree(t *testing.T, modules map[string]string) *Tree {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kernel", "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, depends := range modules {
		info := "alias=alias-of-" + name + "\x00depends=" + depends + "\x00"
		if err := os.WriteFile(filepath.Join(dir, "kernel", "net", name+".ko"), build(info), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/lib/built-in.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestResolve(t *testing.T) {
	tr := tree(t, map[string]string{"a": "b,c-d", "b": "c_d", "c-d": "", "ext4": "", "crc32c_generic": "", "x": "y", "y": "x", "lost": "nowhere"})
	tests := []struct {
		names, want, err string
	}{
		{"a", "c_d b a", ""},
		{"b a", "c_d b a", ""},
		{"built-in", "", ""},
		{"c-d c_d", "c_d", ""},
		{"ext4", "crc32c_generic ext4", ""},
		{"x", "", "depends on itself"},
		{"lost", "", "no module nowhere (needed by lost)"},
	}
	for _, test := range tests {
		list, err := tr.Resolve(strings.Fields(test.names)...)
		var got []string
		for _, m := range list {
			got = append(got, m.Name)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: got %v, want %s", test.names, got, test.want)
		}
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: error %v, want %q", test.names, err, test.err)
		}
	}
	m, err := tr.Module("a")
	if err != nil || len(m.Aliases) != 1 || m.Aliases[0] != "alias-of-a" || m.Path != "kernel/net/a.ko" {
		t.Errorf("got %+v, %v", m, err)
	}
	if got := tr.Names("kernel/net/"); len(got) != 8 || got[0] != "a" {
		t.Errorf("names: %v", got)
	}
	if got := tr.Names("kernel/fs/"); len(got) != 0 {
		t.Errorf("names: %v", got)
	}
}

// bzImage wraps payload as the kernel's build does.
func bzImage(t testing.TB, payload []byte, size int) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	stream := enc.EncodeAll(payload, nil)
	stream = binary.LittleEndian.AppendUint32(stream, uint32(size))
	image := make([]byte, 2*512, 2*512+len(stream))
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(stream)))
	return append(image, stream...)
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	if err := tree(t, map[string]string{"a": "b,c-d", "b": "c_d", "c-d": "", "other": ""}).Install(dir, "a"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep":     "c_d.ko:\nb.ko: c_d.ko\na.ko: b.ko c_d.ko\n",
		"modules.alias":   "alias alias-of-c-d c_d\nalias alias-of-b b\nalias alias-of-a a\n",
		"modules.symbols": "",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if found, err := filepath.Glob(filepath.Join(dir, "*.ko")); err != nil || len(found) != 3 {
		t.Errorf("modules: %v, %v", found, err)
	}
}

func TestVmlinux(t *testing.T) {
	payload := build("")
	got, err := Vmlinux(bzImage(t, payload, len(payload)))
	if err != nil || !bytes.Equal(got, payload) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(payload))
	}
	whole := bzImage(t, payload, len(payload))
	for name, image := range map[string][]byte{
		"empty":          nil,
		"no bzImage":     make([]byte, 4096),
		"cut short":      whole[:len(whole)-1],
		"no ELF":         bzImage(t, []byte("something else"), 14),
		"shorter inside": bzImage(t, payload, len(payload)+1),
	} {
		if _, err := Vmlinux(image); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add(bzImage(f, build(""), len(build(""))))
	f.Fuzz(func(t *testing.T, image []byte) {
		// A size in the hundreds of megabytes is right, but slow to try.
		if n := len(image); n >= 4 && (image[n-1] != 0 || image[n-2] > 16) {
			return
		}
		Vmlinux(image)
	})
}
