package vhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk is what a disk of some blocks may hold: random, zeros, a short last one.
func disk(size int64) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for at := int64(0); at < size; at += blockSize {
		if at/blockSize%3 == 1 {
			continue
		}
		for k := at; k < min(at+4096, size); k += 8 {
			binary.LittleEndian.PutUint64(b[k:], r.Uint64())
		}
	}
	return b
}

func made(t *testing.T, data []byte, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d.vhdx")
	if err := Convert(path, bytes.NewReader(data), size); err != nil {
		t.Fatal(err)
	}
	return path
}

func opened(t *testing.T, path string) *Image {
	t.Helper()
	i, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

func contents(t *testing.T, i *Image) []byte {
	t.Helper()
	b := make([]byte, i.Size())
	if n, err := i.ReadAt(b, 0); n != len(b) || err != nil && err != io.EOF {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	return b
}

// qemuImg asks another program that knows the format. scripts/deps installs it.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is missing: run scripts/deps")
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// agrees checks that QEMU finds nothing wrong and reads the same.
func agrees(t *testing.T, path string, want []byte) {
	t.Helper()
	qemuImg(t, "check", "-q", "-f", "vhdx", path)
	raw := path + ".raw"
	qemuImg(t, "convert", "-f", "vhdx", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("QEMU reads other data: %d bytes, want %d", len(got), len(want))
	}
}

func TestConvert(t *testing.T) {
	for _, size := range []int64{4096, blockSize, 5*blockSize + 8192, 40 * blockSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			want := disk(size)
			path := made(t, want, size)
			i := opened(t, path)
			if i.Size() != size || !bytes.Equal(contents(t, i), want) {
				t.Errorf("a disk of %d bytes came back with %d, or with other contents", size, i.Size())
			}
			agrees(t, path, want)
		})
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.vhdx")
	if err := Create(path, 5<<40); err != nil { // so large that there are sector bitmaps' entries
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 64*mib {
		t.Errorf("an empty image of 5 TiB takes %d MiB, %v", info.Size()/mib, err)
	}
	qemuImg(t, "check", "-q", "-f", "vhdx", path)
	if err := Create(path, mib); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create over an image = %v", err)
	}
	for _, size := range []int64{0, -1, MaxSize + 4096} {
		if Create(path+"2", size) == nil {
			t.Errorf("Create of %d bytes works", size)
		}
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("%d files, want the image only", len(left))
	}
}

func TestOtherMakers(t *testing.T) {
	for _, block := range []string{"1M", "8M"} {
		want := disk(50 * blockSize)
		dir := t.TempDir()
		raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "d.vhdx")
		if err := os.WriteFile(raw, want, 0o600); err != nil {
			t.Fatal(err)
		}
		qemuImg(t, "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic,block_size="+block, raw, path)
		i := opened(t, path)
		if !bytes.Equal(contents(t, i), want) {
			t.Errorf("blocks of %s: other contents than QEMU wrote", block)
		}
		if err := i.Grow(i.Size() + 64*mib); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		i.Close()
		agrees(t, path, append(want, make([]byte, 64*mib)...))
	}
}

func TestGrow(t *testing.T) {
	want := disk(3 * blockSize)
	path := made(t, want, int64(len(want)))
	for _, size := range []int64{4 * blockSize, 100 * mib, 200 << 30} { // the last needs a larger table
		i := opened(t, path)
		if err := i.Grow(size); err != nil {
			t.Fatal(err)
		}
		if err := i.Grow(size - 4096); err == nil {
			t.Error("a disk shrinks")
		}
		i.Close()
		i = opened(t, path)
		got := make([]byte, 5*blockSize)
		n, _ := i.ReadAt(got, 0)
		if i.Size() != size || !bytes.Equal(got[:len(want)], want) || !zeros(got[len(want):n]) {
			t.Errorf("grown to %d: size %d, or other contents", size, i.Size())
		}
		qemuImg(t, "check", "-q", "-f", "vhdx", path)
		i.Close()
	}
}

// discard marks blocks as a guest's discard does.
func discard(t *testing.T, path string, blocks ...int) {
	t.Helper()
	i := opened(t, path)
	for _, n := range blocks {
		i.entries[n] = i.entries[n]&placeMask | blockUnmapped
	}
	if err := writeAt(i.f, i.encode(), i.table.offset); err != nil {
		t.Fatal(err)
	}
	i.Close()
}

func TestCompact(t *testing.T) {
	const blocks = 200
	want := bytes.Repeat(disk(blockSize), blocks)
	path := made(t, want, int64(len(want)))
	full, _ := os.Stat(path)
	var gone []int
	for n := range blocks {
		if n%3 != 2 {
			gone = append(gone, n)
			clear(want[n*blockSize : (n+1)*blockSize])
		}
	}
	discard(t, path, gone...)
	i := opened(t, path)
	freed, err := i.Compact(t.Context())
	if err != nil || freed != int64(len(gone))*blockSize {
		t.Errorf("Compact() = %d, %v, want %d", freed, err, int64(len(gone))*blockSize)
	}
	if again, err := i.Compact(t.Context()); again != 0 || err != nil {
		t.Errorf("Compact once more = %d, %v", again, err)
	}
	i.Close()
	if info, _ := os.Stat(path); full.Size()-info.Size() != freed {
		t.Errorf("the file has shrunk by %d bytes, not %d", full.Size()-info.Size(), freed)
	}
	if !bytes.Equal(contents(t, opened(t, path)), want) {
		t.Error("other contents")
	}
	agrees(t, path, want)
}

func TestCompactGivenUp(t *testing.T) {
	want := bytes.Repeat(disk(blockSize), 10)
	path := made(t, want, int64(len(want)))
	discard(t, path, 0, 1, 2)
	clear(want[:3*blockSize])
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i := opened(t, path)
	if _, err := i.Compact(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Compact() = %v", err)
	}
	i.Close()
	agrees(t, path, want)
}

// TestCompactCut copies the file after each of the writes of a Compact, which is
// what a power cut would leave: every copy must be whole.
func TestCompactCut(t *testing.T) {
	want := bytes.Repeat(disk(blockSize), 150)
	path := made(t, want, int64(len(want)))
	gone := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 50, 51, 52, 53, 54, 55, 100, 101, 102, 103}
	discard(t, path, gone...)
	for _, n := range gone {
		clear(want[n*blockSize : (n+1)*blockSize])
	}
	i := opened(t, path)
	steps := []func() error{i.touch, i.forget,
		func() error { _, err := i.fill(); return err },
		func() error { return i.f.Truncate(i.end()) },
	}
	for n, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents(t, opened(t, path)), want) {
			t.Errorf("after step %d the image has other contents", n)
		}
		qemuImg(t, "check", "-q", "-f", "vhdx", path)
	}
}

func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(f []byte){
		"magic":           func(f []byte) { f[0] = 'x' },
		"both headers":    func(f []byte) { f[headerOffsets[0]+9]++; f[headerOffsets[1]+9]++ },
		"both regions":    func(f []byte) { f[regionOffsets[0]+20]++; f[regionOffsets[1]+20]++ },
		"metadata":        func(f []byte) { f[metadataOffset] = 0 },
		"block elsewhere": func(f []byte) { f[tableOffset+6] = 0x7f },
		"block twice":     func(f []byte) { copy(f[tableOffset+16:tableOffset+24], f[tableOffset:tableOffset+8]) },
		"parent":          func(f []byte) { f[metadataOffset+metadataHead+4] |= 2 },
		"block size":      func(f []byte) { f[metadataOffset+metadataHead+1] = 1 },
	} {
		path := made(t, disk(4*blockSize), 4*blockSize)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		spoil(b)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if i, err := Open(path); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Open = %v, %v", name, i, err)
		}
	}
	path := made(t, nil, mib)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := header(7, newGUID(), newGUID())
	g := newGUID()
	copy(b[48:], g[:])
	seal(b)
	if err := writeAt(f, b, headerOffsets[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrDirty) {
		t.Errorf("Open of an image with a log = %v, want %v", err, ErrDirty)
	}
}

// TestOneHeader: one torn header or region table is no harm.
func TestOneHeader(t *testing.T) {
	want := disk(2 * blockSize)
	path := made(t, want, int64(len(want)))
	b, _ := os.ReadFile(path)
	b[headerOffsets[1]+9]++
	b[regionOffsets[0]+9]++
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents(t, opened(t, path)), want) {
		t.Error("other contents")
	}
}

// FuzzOpen changes what lies before the blocks: nothing may panic, and what opens
// can be compacted.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "d.vhdx")
	if err := Convert(path, bytes.NewReader(disk(4*blockSize)), 4*blockSize); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	places := []int64{headerOffsets[0], headerOffsets[1], regionOffsets[0], metadataOffset, metadataOffset + metadataHead, tableOffset}
	f.Add(byte(0), uint16(10), []byte{1})
	f.Add(byte(3), uint16(40), []byte{0xff, 0xff, 0xff})
	f.Add(byte(5), uint16(8), []byte{6, 0, 0x40})
	f.Fuzz(func(t *testing.T, place byte, offset uint16, change []byte) {
		b := slices.Clone(whole)
		at := places[int(place)%len(places)]
		copy(b[at+int64(offset)%headerSize:], change)
		if at < metadataOffset { // a wrong checksum ends it too soon
			size := int64(headerSize)
			if at >= regionOffsets[0] {
				size = regionSize
			}
			seal(b[at : at+size])
		}
		path := filepath.Join(t.TempDir(), "d.vhdx")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := Open(path)
		if err != nil {
			return
		}
		defer i.Close()
		if i.Size() <= 64*mib {
			before := contents(t, i)
			if _, err := i.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(contents(t, i), before) {
				t.Error("Compact changed the contents")
			}
		}
	})
}
