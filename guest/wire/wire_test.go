package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestFrameRoundTrip(t *testing.T) {
	want := Note{Phase: &Phase{Name: "data disk", Done: true, Since: time.Second, Took: time.Millisecond}}
	var buf bytes.Buffer
	if err := WriteFrame(&buf, want); err != nil {
		t.Fatal(err)
	}
	buf.WriteString("raw")
	var got Note
	if err := ReadFrame(&buf, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if rest := buf.String(); rest != "raw" {
		t.Errorf("bytes after the frame: %q, want %q", rest, "raw")
	}
}

func TestReadFrameBadInput(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"empty", "", io.EOF},
		{"cut head", "\x00\x00", io.ErrUnexpectedEOF},
		{"cut body", "\x00\x00\x00\x05{}", io.ErrUnexpectedEOF},
		{"huge", "\xff\xff\xff\xff", ErrFrameTooLarge},
		{"one over", "\x00\x10\x00\x01", ErrFrameTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v Hello
			if err := ReadFrame(strings.NewReader(c.in), &v); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	var v Hello
	if err := ReadFrame(strings.NewReader("\x00\x00\x00\x02[]"), &v); err == nil {
		t.Error("a list decoded as a Hello")
	}
}

func TestWriteFrameTooLarge(t *testing.T) {
	if err := WriteFrame(io.Discard, strings.Repeat("x", MaxFrame)); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("got %v, want %v", err, ErrFrameTooLarge)
	}
}

func TestDatagrams(t *testing.T) {
	var buf bytes.Buffer
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), MaxDatagram)}
	for _, p := range want {
		if err := WriteDatagram(&buf, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteDatagram(&buf, make([]byte, MaxDatagram+1)); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("too large: %v", err)
	}
	got := make([]byte, MaxDatagram)
	for _, p := range want {
		n, err := ReadDatagram(&buf, got)
		if err != nil || !bytes.Equal(got[:n], p) {
			t.Errorf("got %d bytes, %v, want %d", n, err, len(p))
		}
	}
	buf.WriteString("\x00\x05cut")
	if _, err := ReadDatagram(&buf, got); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut datagram: %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x0f{\"protocol\":1}x"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var w Welcome
		if err := ReadFrame(bytes.NewReader(in), &w); err != nil {
			return
		}
		var buf bytes.Buffer
		if err := WriteFrame(&buf, w); err != nil && !errors.Is(err, ErrFrameTooLarge) {
			t.Errorf("a decoded value does not encode: %v", err)
		}
	})
}
