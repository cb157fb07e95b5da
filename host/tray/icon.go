package tray

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"math"
)

// Look is which of the icons is shown.
type Look int

// The looks of the icon.
const (
	LookStopped Look = iota
	LookBusy         // starting or stopping
	LookRunning
	LookTrouble
)

func (l Look) String() string { return [...]string{"stopped", "busy", "running", "trouble"}[l] }

// The icon's colours are of middle brightness, so that they stand out on light and
// on dark panels alike.
var (
	grey  = color.NRGBA{0x8b, 0x93, 0x9f, 0xff}
	blue  = color.NRGBA{0x2d, 0x8c, 0xf0, 0xff}
	green = color.NRGBA{0x2f, 0xb5, 0x7c, 0xff}
	amber = color.NRGBA{0xf0, 0x9a, 0x1a, 0xff}
	red   = color.NRGBA{0xe5, 0x48, 0x4d, 0xff}
	white = color.NRGBA{0xff, 0xff, 0xff, 0xff}
)

// shape is an area of the unit square, whose y grows downwards.
type shape func(x, y float64) bool

func rectangle(x0, y0, x1, y1 float64) shape {
	return func(x, y float64) bool { return x >= x0 && x < x1 && y >= y0 && y < y1 }
}

func disc(cx, cy, r float64) shape {
	return func(x, y float64) bool { return math.Hypot(x-cx, y-cy) < r }
}

// hull is a ship's, seen from the side: wide at the deck, with rounded ends below.
func hull(x, y float64) bool {
	const deck, keel = 0.60, 0.92
	if y < deck || y >= keel {
		return false
	}
	down := (y - deck) / (keel - deck)
	inset := 0.04 + 0.20*down*down
	return x >= inset && x < 1-inset
}

// layer is a shape and its colour; a later one covers an earlier.
type layer struct {
	in shape
	of color.NRGBA
}

// layers draw a ship with three containers, in the colours of its state.
func layers(l Look) []layer {
	left, right, top := rectangle(0.18, 0.34, 0.48, 0.56), rectangle(0.52, 0.34, 0.82, 0.56), rectangle(0.35, 0.08, 0.65, 0.30)
	switch l {
	case LookRunning:
		return []layer{{hull, blue}, {left, green}, {right, green}, {top, green}}
	case LookBusy:
		return []layer{{hull, blue}, {left, amber}, {right, amber}}
	case LookTrouble:
		return []layer{{hull, grey}, {left, grey}, {right, grey},
			{disc(0.72, 0.30, 0.28), red}, {rectangle(0.68, 0.12, 0.76, 0.34), white}, {rectangle(0.68, 0.39, 0.76, 0.47), white}}
	}
	return []layer{{hull, grey}, {left, grey}, {right, grey}, {top, grey}}
}

// smooth and hard are how many points of a pixel are looked at, along each side:
// one makes every pixel opaque or clear.
const smooth, hard = 8, 1

// Draw draws an icon of that size in pixels, with smooth edges.
func Draw(l Look, size int) *image.NRGBA { return draw(l, size, smooth) }

func draw(l Look, size, samples int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	all := layers(l)
	for py := range size {
		for px := range size {
			img.SetNRGBA(px, py, pixel(all, px, py, size, samples))
		}
	}
	return img
}

// pixel is the mean colour of a pixel's points, and how many of them are drawn.
func pixel(all []layer, px, py, size, samples int) color.NRGBA {
	var r, g, b, hits int
	for i := range samples * samples {
		x := (float64(px) + (float64(i%samples)+0.5)/float64(samples)) / float64(size)
		y := (float64(py) + (float64(i/samples)+0.5)/float64(samples)) / float64(size)
		for j := len(all) - 1; j >= 0; j-- {
			if all[j].in(x, y) {
				c := all[j].of
				r, g, b, hits = r+int(c.R), g+int(c.G), b+int(c.B), hits+1
				break
			}
		}
	}
	if hits == 0 {
		return color.NRGBA{}
	}
	return color.NRGBA{uint8(r / hits), uint8(g / hits), uint8(b / hits), uint8(hits * 255 / (samples * samples))}
}

// PNG is the icon as a PNG file.
func PNG(l Look, size int) []byte { return encode(Draw(l, size)) }

// HardPNG is the icon without half-clear pixels, for those who scale it down
// themselves and would blend it wrongly.
func HardPNG(l Look, size int) []byte { return encode(draw(l, size, hard)) }

func encode(img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err) // a Buffer takes all, and the image is whole
	}
	return b.Bytes()
}

// ICO is the icon as an ICO file with those sizes, each below 256 pixels, as
// bitmaps of 32 bits: every Windows reads them.
func ICO(l Look, sizes ...int) []byte {
	const header, entry = 6, 16
	var dir, images bytes.Buffer
	put := func(w *bytes.Buffer, values ...any) {
		for _, v := range values {
			binary.Write(w, binary.LittleEndian, v) // a Buffer takes all
		}
	}
	put(&dir, uint16(0), uint16(1), uint16(len(sizes)))
	for _, size := range sizes {
		body := bitmap(Draw(l, size))
		put(&dir, uint8(size), uint8(size), uint8(0), uint8(0), uint16(1), uint16(32),
			uint32(len(body)), uint32(header+entry*len(sizes)+images.Len()))
		images.Write(body)
	}
	return append(dir.Bytes(), images.Bytes()...)
}

// bitmap is an icon's image: a BITMAPINFOHEADER of twice the height, the pixels as
// BGRA from the bottom up, and a mask of one bit a pixel, which alpha makes idle.
func bitmap(img *image.NRGBA) []byte {
	size := img.Rect.Dx()
	mask := make([]byte, (size+31)/32*4*size)
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, struct {
		Size                         uint32
		Width, Height                int32
		Planes, Bits                 uint16
		Compression, ImageSize       uint32
		PerMeterX, PerMeterY         int32
		ColoursUsed, ColoursRequired uint32
	}{40, int32(size), int32(2 * size), 1, 32, 0, uint32(4*size*size + len(mask)), 0, 0, 0, 0})
	for y := size - 1; y >= 0; y-- {
		for x := range size {
			c := img.NRGBAAt(x, y)
			b.Write([]byte{c.B, c.G, c.R, c.A})
		}
	}
	b.Write(mask)
	return b.Bytes()
}
