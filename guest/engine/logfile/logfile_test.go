package logfile

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newLog(t *testing.T, o Options) *Log {
	t.Helper()
	if o.MaxFiles == 0 {
		o.MaxFiles = 1
	}
	l := New(filepath.Join(t.TempDir(), "x-json.log"), o)
	if err := l.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func put(t *testing.T, l *Log, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if err := l.Append(Entry{Line: []byte(line), Stream: "stdout", Time: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, l *Log, o ReadOptions) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var got strings.Builder
	if err := l.Read(ctx, o, func(e Entry) error { got.Write(e.Line); return nil }); err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestTail(t *testing.T) {
	l := newLog(t, Options{MaxSize: 150, MaxFiles: 3})
	want := ""
	for i := range 8 {
		put(t, l, fmt.Sprintf("line %d\n", i))
	}
	all := read(t, l, ReadOptions{Tail: -1})
	if !strings.HasSuffix(all, "line 6\nline 7\n") || strings.Contains(all, "line 0") {
		t.Errorf("rotation kept %q", all)
	}
	kept := strings.SplitAfter(strings.TrimSuffix(all, "\n"), "\n")
	kept[len(kept)-1] += "\n"
	for n := 0; n <= len(kept)+1; n++ {
		want = strings.Join(kept[max(0, len(kept)-n):], "")
		if got := read(t, l, ReadOptions{Tail: n}); got != want {
			t.Errorf("tail %d: got %q, want %q", n, got, want)
		}
	}
}

// TestCompress: what is set aside is compressed, and read like the rest; also what
// a crash left uncompressed, or both ways.
func TestCompress(t *testing.T) {
	l := newLog(t, Options{MaxSize: 4000, MaxFiles: 4, Compress: true})
	followed := make(chan string, 1)
	go func() {
		var b strings.Builder
		_ = l.Read(context.Background(), ReadOptions{Tail: -1, Follow: true}, func(e Entry) error { b.Write(e.Line); return nil })
		followed <- b.String()
	}()
	packed := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.packed()
	}
	all := ""
	for i := range 300 {
		line := fmt.Sprintf("line %d\n", i)
		all += line
		put(t, l, line)
	}
	packed()
	for i := 1; i < 4; i++ {
		_, plain := os.Stat(l.older(i))
		small, gone := os.Stat(l.older(i) + packedSuffix)
		if plain == nil || gone != nil || small.Size() > 2000 {
			t.Errorf("file %d: %v, %v", i, plain, gone)
		}
	}
	kept := read(t, l, ReadOptions{Tail: -1})
	if !strings.HasSuffix(all, kept) || len(kept) < len(all)/4 {
		t.Errorf("%d bytes are left of %d", len(kept), len(all))
	}
	for _, n := range []int{0, 1, 30, 100, 1000} {
		lines := strings.SplitAfter(kept, "\n")
		if got, want := read(t, l, ReadOptions{Tail: n}), strings.Join(lines[max(0, len(lines)-1-n):], ""); got != want {
			t.Errorf("tail %d: got %q, want %q", n, got, want)
		}
	}
	l.Close()
	if got := <-followed; !strings.HasSuffix(all, got[max(0, len(got)-len(kept)):]) {
		t.Errorf("a reader that follows got %q at the end", got[max(0, len(got)-100):])
	}
	content, err := os.ReadFile(l.older(2) + packedSuffix)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPart(l.older(2))
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.plain()
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	f.Close()
	if err := os.WriteFile(l.older(2), plain, 0o600); err != nil { // a crash before it was removed
		t.Fatal(err)
	}
	if err := os.WriteFile(l.older(3)+packedSuffix, content[:len(content)/2], 0o600); err != nil { // a disk's fault
		t.Fatal(err)
	}
	if got := read(t, l, ReadOptions{Tail: 50}); !strings.HasSuffix(kept, got) || strings.Count(got, "\n") != 50 {
		t.Errorf("after a crash: %q", got)
	}
	if err := l.Read(context.Background(), ReadOptions{Tail: -1}, func(Entry) error { return nil }); err == nil || !strings.Contains(err.Error(), ".3.gz") {
		t.Errorf("a file that is cut off: %v", err)
	}
	if err := l.Open(); err != nil {
		t.Fatal(err)
	}
	packed()
	if _, err := os.Stat(l.older(2)); err == nil {
		t.Error("what a crash left is not compressed")
	}
	if left, _ := filepath.Glob(filepath.Dir(l.path) + "/unpacked-*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSinceUntilStream(t *testing.T) {
	l := newLog(t, Options{})
	base := time.Unix(1000, 0)
	for i := range 5 {
		e := Entry{Line: fmt.Appendf(nil, "%d", i), Stream: []string{"stdout", "stderr"}[i%2], Time: base.Add(time.Duration(i) * time.Second)}
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, l, ReadOptions{Tail: -1, Since: base.Add(time.Second), Until: base.Add(3 * time.Second)}); got != "123" {
		t.Errorf("got %q, want 123", got)
	}
	if got := read(t, l, ReadOptions{Tail: -1, Stream: "stderr"}); got != "13" {
		t.Errorf("got %q, want 13", got)
	}
}

func TestFollowAcrossRotation(t *testing.T) {
	l := newLog(t, Options{MaxSize: 2000, MaxFiles: 50})
	put(t, l, "a\n")
	got := make(chan string, 1)
	go func() {
		var b strings.Builder
		_ = l.Read(context.Background(), ReadOptions{Tail: -1, Follow: true}, func(e Entry) error { b.Write(e.Line); return nil })
		got <- b.String()
	}()
	want := "a\n"
	for i := range 500 {
		line := fmt.Sprintf("%d\n", i)
		want += line
		put(t, l, line)
	}
	l.Close()
	select {
	case s := <-got:
		if s != want {
			t.Errorf("followed %d bytes, want %d", len(s), len(want))
		}
	case <-time.After(10 * time.Second):
		t.Fatal("follow did not end with the log")
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	l := newLog(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Read(ctx, ReadOptions{Tail: -1, Follow: true}, func(Entry) error { return nil }) }()
	cancel()
	select {
	case err := <-done:
		if err != context.Canceled {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a cancelled read goes on")
	}
}

func TestTornEntryIsDropped(t *testing.T) {
	l := newLog(t, Options{})
	put(t, l, "a\n")
	l.Close()
	f, err := os.OpenFile(l.Path(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `{"log":"half`)
	f.Close()
	if err := l.Open(); err != nil {
		t.Fatal(err)
	}
	put(t, l, "b\n")
	if got := read(t, l, ReadOptions{Tail: -1}); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
}

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		config map[string]string
		ok     bool
	}{
		{nil, true},
		{map[string]string{"max-size": "10m", "max-file": "3"}, true},
		{map[string]string{"max-size": "x"}, false},
		{map[string]string{"max-size": "10m", "max-file": "0"}, false},
		{map[string]string{"max-file": "3"}, true},
		{map[string]string{"max-size": "0"}, false},
		{map[string]string{"compress": "true"}, false},
		{map[string]string{"compress": "true", "max-size": "10m", "max-file": "3"}, true},
		{map[string]string{"mode": "odd"}, false},
		{map[string]string{"mode": "non-blocking", "max-buffer-size": "4m"}, true},
		{map[string]string{"max-buffer-size": "4m"}, false},
		{map[string]string{"labels-regex": "("}, false},
		{map[string]string{"tag": "{{.Name}}/{{.ID}}"}, true},
		{map[string]string{"tag": "{{.Nothing}}"}, false},
		{map[string]string{"compress": "maybe"}, false},
		{map[string]string{"nope": "1"}, false},
	} {
		if _, err := ParseOptions("json-file", c.config); (err == nil) != c.ok {
			t.Errorf("%v: %v", c.config, err)
		}
	}
}

// stuckLog takes nothing until it is let go.
type stuckLog struct {
	called chan struct{} // closed by the first call
	free   chan struct{}
	lines  []string
}

func (l *stuckLog) Append(entries ...Entry) error {
	select {
	case <-l.called:
	default:
		close(l.called)
	}
	<-l.free
	for _, e := range entries {
		l.lines = append(l.lines, string(e.Line))
	}
	return nil
}

// TestRing: a log that is stuck holds nobody up, and gets what came first.
func TestRing(t *testing.T) {
	const size = 20 * (entrySize + 4)
	log := &stuckLog{called: make(chan struct{}), free: make(chan struct{})}
	r := NewRing(log, size)
	ended := make(chan error, 1)
	go func() { ended <- r.Run() }()
	line := []byte("000\n")
	put := func(n int) {
		copy(line, fmt.Sprintf("%03d\n", n)) // a ring keeps none of the caller's memory
		if err := r.Append(Entry{Line: line}); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	<-log.called // with the first line
	for n := 1; n < 100; n++ {
		put(n)
	}
	close(log.free)
	r.Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "79 entries did not fit in the buffer of 1520 bytes") {
		t.Errorf("the end: %v", err)
	}
	if got := strings.Join(log.lines, ""); len(log.lines) != 21 || !strings.HasPrefix(got, "000\n001\n") || !strings.HasSuffix(got, "020\n") {
		t.Errorf("logged %q", got)
	}
	put(100)
	if len(log.lines) != 21 {
		t.Error("a closed ring takes entries")
	}

	// One that is larger than the ring is taken when nothing else is in it.
	log = &stuckLog{called: make(chan struct{}), free: make(chan struct{})}
	r = NewRing(log, 0)
	put(0)
	put(1)
	close(log.free)
	r.Close()
	if err := r.Run(); err == nil || len(log.lines) != 1 || log.lines[0] != "000\n" {
		t.Errorf("logged %q: %v", log.lines, err)
	}
}

func TestMode(t *testing.T) {
	for _, c := range []struct {
		config map[string]string
		buffer int64 // -1: the container waits for its log
	}{
		{nil, -1},
		{map[string]string{"mode": "blocking"}, -1},
		{map[string]string{"mode": "non-blocking"}, 1_000_000},
		{map[string]string{"mode": "non-blocking", "max-buffer-size": "4m"}, 4 << 20},
	} {
		o, err := ParseOptions("local", c.config)
		if err != nil || o.NonBlocking != (c.buffer >= 0) || o.NonBlocking && o.Buffer != c.buffer {
			t.Errorf("%v: %+v, %v", c.config, o, err)
		}
		if ring := New("x", o).Ring(); (ring != nil) != o.NonBlocking {
			t.Errorf("%v: ring %v", c.config, ring)
		}
	}
}

func TestAttributes(t *testing.T) {
	got, err := Attributes(map[string]string{"labels": "a,none", "labels-regex": "^b", "env": "X", "env-regex": "^Y.$", "tag": "{{.Name}}/{{.ID}}"},
		Origin{FullID: strings.Repeat("0123456789abcdef", 4), Name: "web", Labels: map[string]string{"a": "1", "b2": "2", "c": "3"},
			Env: []string{"X=4", "Y1=5", "Z=6", "N"}})
	want := map[string]string{"a": "1", "b2": "2", "X": "4", "Y1": "5", "tag": "web/0123456789ab"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("local", "10m", "3", "true", "a,b", "^x", "{{.Name}}")
	f.Add("json-file", "-1", "0", "x", "", "(", "{{")
	f.Fuzz(func(t *testing.T, driver, size, files, compress, labels, expr, tag string) {
		o, err := ParseOptions(driver, map[string]string{"max-size": size, "max-file": files, "compress": compress, "labels": labels,
			"env-regex": expr, "tag": tag})
		if err == nil && (o.MaxFiles < 1 || o.MaxSize < 0) {
			t.Errorf("%+v", o)
		}
	})
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte("hello\n"))
	f.Add([]byte("\x00\xff\u2028<&>\"\\\t"))
	f.Fuzz(func(t *testing.T, line []byte) {
		b := appendEntry(nil, Entry{Line: line, Stream: "stdout", Time: time.Unix(1, 0)})
		e, err := decodeEntry(b[:len(b)-1])
		if err != nil {
			t.Fatalf("%q does not decode: %v", b, err)
		}
		want, _ := json.Marshal(string(line))
		var s string
		_ = json.Unmarshal(want, &s)
		if string(e.Line) != s {
			t.Errorf("got %q, want %q", e.Line, s)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2020-01-01T00:00:00Z\"}\nx\n"), 1)
	f.Fuzz(func(t *testing.T, file []byte, tail int) {
		l := New(filepath.Join(t.TempDir(), "log"), Options{MaxFiles: 1})
		if err := os.WriteFile(l.Path(), file, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = l.Read(context.Background(), ReadOptions{Tail: tail}, func(Entry) error { return nil })
	})
}
