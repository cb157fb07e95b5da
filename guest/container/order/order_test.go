package order

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
)

// full has something in every field, so that a forgotten one shows.
func full() *Order {
	o := new(Order)
	n := 0
	fill(reflect.ValueOf(o).Elem(), &n)
	return o
}

func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(strings.Repeat("x", *n%7) + "y")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n) * -3)
	case reflect.Uint8:
		v.SetUint(uint64(*n % 256))
	case reflect.Uint32:
		v.SetUint(math.MaxUint32 - uint64(*n))
	case reflect.Uint64:
		v.SetUint(math.MaxUint64 - uint64(*n))
	default:
		panic(v.Kind())
	}
}

func TestRoundTrip(t *testing.T) {
	for _, o := range []*Order{full(), {}, {Process: Process{Personality: math.MinInt64, Umask: math.MinInt}}} {
		b := Encode(nil, o)
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, o) {
			t.Errorf("got %+v, want %+v", got, o)
		}
		for n := range len(b) {
			if _, err := Decode(b[:n]); err == nil {
				t.Errorf("the first %d of %d bytes were taken", n, len(b))
			}
		}
		if _, err := Decode(append(bytes.Clone(b), 0)); err == nil {
			t.Error("a byte too many was taken")
		}
	}
	if _, err := Decode(append([]byte{Version + 1}, Encode(nil, full())[1:]...)); err == nil {
		t.Error("another version was taken")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(nil, full()))
	f.Add(Encode(nil, &Order{}))
	f.Add([]byte{Version, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := Decode(bytes.Clone(b))
		if err != nil {
			return
		}
		again, err := Decode(Encode(nil, o))
		if err != nil || !reflect.DeepEqual(o, again) {
			t.Errorf("%v: %+v became %+v", err, o, again)
		}
	})
}

// BenchmarkDecode shows why the encoding is our own: JSON is the alternative.
func BenchmarkDecode(b *testing.B) {
	o := full()
	o.Process.Seccomp = make([]byte, 6000)
	b.Run("order", func(b *testing.B) {
		in := Encode(nil, o)
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			if _, err := Decode(in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("json", func(b *testing.B) {
		in, err := json.Marshal(o)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			if err := json.Unmarshal(in, new(Order)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
