package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const text = "plain text, plain text, plain text\n"

// bzipped is text, as bzip2 -9 writes it.
const bzipped = "QlpoOTFBWSZTWVhsrD4AAAzRgAAQQAQiJURAIAAhtU0aPJCAaaaJtMpM0dIQaeFGHxdyRThQkFhsrD4="

func squeezed(t testing.TB) map[string][]byte {
	t.Helper()
	out := map[string][]byte{"plain": []byte(text), "nothing": nil, "short": []byte("BZ")}
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	g.Write([]byte(text))
	g.Close()
	out["gzip"] = bytes.Clone(b.Bytes())
	b.Reset()
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	z.Write([]byte(text))
	z.Close()
	out["zstd"] = bytes.Clone(b.Bytes())
	out["zstd after a frame to skip"] = append([]byte{0x53, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, out["zstd"]...)
	if out["bzip2"], err = base64.StdEncoding.DecodeString(bzipped); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("xz", "-c")
	cmd.Stdin = strings.NewReader(text)
	if out["xz"], err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNew(t *testing.T) {
	for name, in := range squeezed(t) {
		want := text
		if len(in) < 3 {
			want = string(in)
		}
		r, err := New(t.Context(), bytes.NewReader(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		if len(in) < 20 || name == "plain" {
			continue
		}
		if r, err = New(t.Context(), bytes.NewReader(in[:len(in)-9])); err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if err == nil {
			t.Errorf("%s, cut: no error", name)
		}
	}
}

// TestClose: a program that is still at work ends with its reader.
func TestClose(t *testing.T) {
	in := squeezed(t)["xz"]
	source, w := io.Pipe()
	go func() { _, _ = w.Write(in[:20]) }()
	r, err := New(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("read %d after Close, %v", n, err)
	}
	w.Close()
}

// FuzzNew: no stream does harm.
func FuzzNew(f *testing.F) {
	for _, in := range squeezed(f) {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := New(t.Context(), bytes.NewReader(in))
		if err != nil {
			return
		}
		defer r.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	})
}
