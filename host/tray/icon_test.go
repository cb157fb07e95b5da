package tray

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"testing"
)

var everyLook = []Look{LookStopped, LookBusy, LookRunning, LookTrouble}

// TestIconsDiffer: each look is another picture at every size a panel may have,
// stands out on light and on dark, and leaves the corners to the panel.
func TestIconsDiffer(t *testing.T) {
	for _, size := range []int{16, 22, 24, 32, 48, 64} {
		for i, l := range everyLook {
			img := Draw(l, size)
			if img.Rect.Dx() != size || img.NRGBAAt(0, 0).A != 0 || img.NRGBAAt(0, size-1).A != 0 {
				t.Errorf("%s at %d: the corners are drawn", l, size)
			}
			opaque := 0
			for p := range size * size {
				if img.Pix[4*p+3] == 0xff {
					opaque++
				}
			}
			if opaque < size*size/5 {
				t.Errorf("%s at %d: only %d pixels are opaque", l, size, opaque)
			}
			for _, other := range everyLook[i+1:] {
				if n := differing(img, Draw(other, size)); n < size*size/10 {
					t.Errorf("%s and %s at %d differ in %d pixels", l, other, size, n)
				}
			}
		}
	}
	for _, c := range []color.NRGBA{grey, blue, green, amber, red} {
		if l := brightness(c); l < 0.25 || l > 0.75 {
			t.Errorf("%v: brightness %.2f is lost on some panel", c, l)
		}
	}
}

func brightness(c color.NRGBA) float64 {
	return (0.299*float64(c.R) + 0.587*float64(c.G) + 0.114*float64(c.B)) / 255
}

func differing(a, b *image.NRGBA) (n int) {
	for p := 0; p < len(a.Pix); p += 4 {
		if !bytes.Equal(a.Pix[p:p+4], b.Pix[p:p+4]) {
			n++
		}
	}
	return n
}

func TestPNG(t *testing.T) {
	img, err := png.Decode(bytes.NewReader(PNG(LookRunning, 22)))
	if err != nil || img.Bounds().Dx() != 22 || img.At(11, 17) != color.Color(blue) {
		t.Errorf("%v, %v", img.At(11, 17), err)
	}
}

func TestHardPNG(t *testing.T) {
	img, err := png.Decode(bytes.NewReader(HardPNG(LookTrouble, 128)))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]int{}
	for p := range 128 * 128 {
		_, _, _, a := img.At(p%128, p/128).RGBA()
		seen[a]++
	}
	if len(seen) != 2 || seen[0] == 0 || seen[0xffff] == 0 {
		t.Errorf("alphas %v", seen)
	}
}

// TestICO reads the file back, as the format's description has it.
func TestICO(t *testing.T) {
	sizes := []int{16, 24, 32}
	file := ICO(LookTrouble, sizes...)
	if !bytes.Equal(file[:6], []byte{0, 0, 1, 0, 3, 0}) {
		t.Fatalf("header % x", file[:6])
	}
	end := uint32(6 + 16*len(sizes))
	for i, size := range sizes {
		entry := file[6+16*i:]
		length, offset := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		if int(entry[0]) != size || int(entry[1]) != size || entry[6] != 32 || offset != end {
			t.Errorf("entry %d: % x, want it at %d", i, entry[:16], end)
		}
		body := file[offset : offset+length]
		if height := binary.LittleEndian.Uint32(body[8:]); int(height) != 2*size {
			t.Errorf("height %d of %d", height, size)
		}
		want := Draw(LookTrouble, size).NRGBAAt(size/2, size-1-size/5)
		at := body[40+4*(size*(size/5)+size/2):]
		if got := (color.NRGBA{at[2], at[1], at[0], at[3]}); got != want {
			t.Errorf("pixel %v, want %v", got, want)
		}
		end += length
	}
	if int(end) != len(file) {
		t.Errorf("%d bytes, want %d", len(file), end)
	}
}
