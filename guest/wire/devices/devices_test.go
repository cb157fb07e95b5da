package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestParameters(t *testing.T) {
	address := net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}
	line := strings.Join([]string{"quiet", Cable, MAC(address), Disks([]string{"berth-root", "berth-data"}), "x=" + Restart}, " ")
	if !Has(line, Cable) || Has(line, Restart) || Has(line, HyperV) {
		t.Errorf("the parameters of %q", line)
	}
	if got := FindMAC(line); !bytes.Equal(got, address) {
		t.Errorf("FindMAC(%q) = %v", line, got)
	}
	if got := FindDisks(line); !slices.Equal(got, []string{"berth-root", "berth-data"}) {
		t.Errorf("FindDisks(%q) = %q", line, got)
	}
	for _, bad := range []string{"", "berth.mac=", "berth.mac=1", "berth.mac=02:00:5e:10:00:00:00:01"} {
		if got := FindMAC(bad); got != nil {
			t.Errorf("FindMAC(%q) = %v", bad, got)
		}
	}
	if got := FindDisks("quiet berth.disks="); got != nil {
		t.Errorf("no disks are %q", got)
	}
}

// card is one end of a wire of whole frames.
type card struct {
	in  [][]byte
	out [][]byte
}

func (c *card) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[0])
	c.in = c.in[1:]
	return n, nil
}

func (c *card) Write(p []byte) (int, error) {
	if len(p) == 7 {
		return 0, errors.New("not this one")
	}
	c.out = append(c.out, bytes.Clone(p))
	return len(p), nil
}

func TestFrames(t *testing.T) {
	frames := [][]byte{make([]byte, 60), bytes.Repeat([]byte("x"), 1514), make([]byte, 7), make([]byte, MaxFrame), {}}
	near, far, stream := &card{in: slices.Clone(frames)}, &card{}, &bytes.Buffer{}
	if err := Send(stream, near); err != io.EOF {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	if err := Receive(far, bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	want := slices.Delete(slices.Clone(frames), 2, 3) // that one was refused
	if !slices.EqualFunc(far.out, want, bytes.Equal) {
		t.Errorf("%d frames, want %d, or others", len(far.out), len(want))
	}
	for _, cut := range []int{1, 3, 4, 30, len(whole) - 5} {
		if err := Receive(&card{}, bytes.NewReader(whole[:cut])); err != io.ErrUnexpectedEOF {
			t.Errorf("a stream cut after %d bytes: %v", cut, err)
		}
	}
	if err := Receive(&card{}, bytes.NewReader(binary.BigEndian.AppendUint32(nil, MaxFrame+1))); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame that is too long: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02ab"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &card{}
		Receive(c, bytes.NewReader(data))
		n := 0
		for _, frame := range c.out {
			n += frameHead + len(frame)
		}
		if n > len(data) {
			t.Errorf("%d bytes of frames from %d", n, len(data))
		}
	})
}
