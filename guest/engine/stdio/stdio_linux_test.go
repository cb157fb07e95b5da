package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/engine/logfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memLog struct {
	mu  sync.Mutex
	got []string
	err error
}

func (l *memLog) Append(entries ...logfile.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		l.got = append(l.got, string(e.Line))
	}
	return l.err
}

func pipe(t *testing.T) (*os.File, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err == nil {
		r, err = Pollable(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// collect reads everything a set emits.
func collect(s *Set) func() string {
	r := s.Subscribe(true, true)
	var b bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, p, err := r.Next()
			if err != nil {
				return
			}
			b.Write(p)
		}
	}()
	return func() string { <-done; r.Close(); return b.String() }
}

func TestDrain(t *testing.T) {
	long := strings.Repeat("x", logfile.MaxLine+5)
	for _, c := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"a\n", "b\n"}},
		{"line in pieces", []string{"a", "b", "c\nd"}, []string{"abc\n", "d"}},
		{"empty", nil, nil},
		{"long", []string{long + "\n"}, []string{long[:logfile.MaxLine], "xxxxx\n"}},
		{"binary", []string{"\x00\n\xff"}, []string{"\x00\n", "\xff"}},
	} {
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tty=%v", c.name, tty), func(t *testing.T) {
				r, w := pipe(t)
				set, log := NewSet(), &memLog{}
				emitted := collect(set)
				done := make(chan error, 1)
				defer r.Close()
				go func() { done <- Drain(set, Stdout, r, tty, log) }()
				for _, s := range c.writes {
					if _, err := io.WriteString(w, s); err != nil {
						t.Error(err)
					}
					time.Sleep(5 * time.Millisecond) // let it see the pieces apart
				}
				w.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
				set.End()
				if got, want := emitted(), strings.Join(c.writes, ""); got != want {
					t.Errorf("emitted %d bytes, want %d", len(got), len(want))
				}
				if strings.Join(log.got, "|") != strings.Join(c.want, "|") {
					t.Errorf("logged %.100q, want %.100q", log.got, c.want)
				}
			})
		}
	}
}

// TestDrainBulk pushes more than a pipe holds, in odd pieces.
func TestDrainBulk(t *testing.T) {
	r, w := pipe(t)
	set, log := NewSet(), &memLog{}
	done := make(chan error, 1)
	go func() { done <- Drain(set, Stdout, r, false, log) }()
	var want strings.Builder
	for i := range 20_000 {
		line := fmt.Sprintf("%d %s\n", i, strings.Repeat("y", i%97))
		want.WriteString(line)
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(log.got, ""); got != want.String() {
		t.Errorf("logged %d bytes, want %d", len(got), want.Len())
	}
}

// TestDrainFullPipe: the kernel does not say that a pipe has become full when it was
// not empty before, as with an unfinished line in it.
func TestDrainFullPipe(t *testing.T) {
	r, w := pipe(t)
	w.Fd() // blocking, as a container's
	set, log := NewSet(), &memLog{}
	reader := set.Subscribe(true, false)
	done := make(chan error, 1)
	go func() { done <- Drain(set, Stdout, r, false, log) }()
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(w, "unfinished ")
		if _, _, rerr := reader.Next(); err == nil { // it has been looked at
			err = rerr
		}
		reader.Close()
		if err == nil {
			_, err = io.WriteString(w, strings.Repeat("y", 4*batch)+"\n")
		}
		written <- err
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the process waits for ever")
		r.Close()
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := strings.Join(log.got, ""); got != "unfinished "+strings.Repeat("y", 4*batch)+"\n" {
		t.Errorf("logged %d bytes", len(got))
	}
}

// TestUnloggedStaysInPipe: what is not logged yet must still be in the pipe, so
// that an engine that takes over finds it.
// TestDrainLastWords: a process may print and end between any two looks at its pipe.
func TestDrainLastWords(t *testing.T) {
	for i := range 20000 {
		r, w := pipe(t)
		log, done := &memLog{}, make(chan error, 1)
		go func() { done <- Drain(NewSet(), Stdout, r, false, log) }()
		for range i % 64 { // while the drain gets to its first look
			runtime.Gosched()
		}
		if _, err := w.WriteString("last\n"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := <-done; err != nil || len(log.got) != 1 {
			t.Fatalf("round %d: %v, %d entries", i, err, len(log.got))
		}
		r.Close()
	}
}

func TestUnloggedStaysInPipe(t *testing.T) {
	r, w := pipe(t)
	defer w.Close()
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "whole\npart"); err != nil {
		t.Fatal(err)
	}
	src := &teeing{file: r, raw: raw}
	data, _, _, err := src.next(0)
	if err != nil {
		t.Fatal(err)
	}
	_, done := split(data, Stdout, false)
	src.consume(done)
	w.Close()
	left, err := io.ReadAll(r)
	if err != nil || string(left) != "part" {
		t.Errorf("the pipe holds %q, %v; want the unfinished line", left, err)
	}
}

func TestLogErrorDoesNotStop(t *testing.T) {
	r, w := pipe(t)
	set, log := NewSet(), &memLog{err: errors.New("disk full")}
	emitted := collect(set)
	done := make(chan error, 1)
	go func() { done <- Drain(set, Stderr, r, false, log) }()
	fmt.Fprint(w, "a\n")
	time.Sleep(5 * time.Millisecond)
	fmt.Fprint(w, "b\n")
	w.Close()
	if err := <-done; err == nil {
		t.Error("the log's error is lost")
	}
	set.End()
	if got := emitted(); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
}

func TestSlowReaderHoldsUpAndCloseFrees(t *testing.T) {
	set := NewSet()
	r := set.Subscribe(true, false)
	blocked := make(chan struct{})
	go func() {
		for range 3 {
			set.Emit(Stdout, make([]byte, maxQueue))
		}
		close(blocked)
	}()
	select {
	case <-blocked:
		t.Fatal("a reader that does not read does not hold up the writer")
	case <-time.After(20 * time.Millisecond):
	}
	r.Close()
	select {
	case <-blocked:
	case <-time.After(5 * time.Second):
		t.Fatal("a closed reader holds up the writer")
	}
}

func TestAttach(t *testing.T) {
	set := NewSet()
	in, client := pipe(t)
	procIn, stdin := pipe(t)
	var out bytes.Buffer
	reader := set.Subscribe(true, true)
	done := make(chan error, 1)
	go func() {
		done <- set.Attach(context.Background(), reader, Attachment{
			Stdin: in, Interrupt: func() { in.Close() }, CloseStdin: true,
			Out: func(_ Stream, p []byte) error { out.Write(p); return nil },
		})
	}()
	fmt.Fprint(client, "typed early")
	client.Close()
	set.SetStdin(stdin, nil)
	got, err := io.ReadAll(procIn)
	if err != nil || string(got) != "typed early" {
		t.Errorf("the process read %q, %v", got, err)
	}
	set.Emit(Stdout, []byte("bye"))
	set.End()
	if err := <-done; err != nil || out.String() != "bye" {
		t.Errorf("attach: %v, printed %q", err, out.String())
	}
}

func TestDetachKeys(t *testing.T) {
	set := NewSet()
	in, client := pipe(t)
	procIn, stdin := pipe(t)
	defer procIn.Close()
	set.SetStdin(stdin, nil)
	reader := set.Subscribe(true, true)
	done := make(chan error, 1)
	go func() {
		done <- set.Attach(context.Background(), reader, Attachment{
			Stdin: in, Interrupt: func() { in.Close() }, TTY: true,
			Out: func(Stream, []byte) error { return nil },
		})
	}()
	client.Write([]byte{'a'})
	client.Write(DefaultDetachKeys[:1])
	client.Write(DefaultDetachKeys[1:])
	select {
	case err := <-done:
		if !errors.Is(err, ErrDetached) {
			t.Errorf("got %v, want ErrDetached", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the detach keys do not detach")
	}
	client.Close()
	set.End()
}

func TestAttachEndsWithContext(t *testing.T) {
	set := NewSet()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	reader := set.Subscribe(true, true)
	go func() {
		done <- set.Attach(ctx, reader, Attachment{Out: func(Stream, []byte) error { return nil }})
	}()
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("attach outlives its context")
	}
	set.End()
}

// FuzzTyped: what is typed before the detach keys reaches the process and nothing
// after them does, however it is cut into reads.
func FuzzTyped(f *testing.F) {
	f.Add([]byte("ls\n"), []byte("\x10\x11"), []byte("rest"), uint8(3))
	f.Add([]byte("\x10\x10"), []byte("\x10\x11"), []byte{}, uint8(1))
	f.Add([]byte("aab"), []byte("aabaac"), []byte("aabaa"), uint8(2))
	f.Add([]byte{}, []byte("a"), []byte("a"), uint8(0))
	f.Fuzz(func(t *testing.T, before, keys, after []byte, cut uint8) {
		if len(keys) == 0 || len(keys) > 16 || len(before)+len(after) > 4096 {
			return
		}
		r, w := pipe(t)
		defer r.Close()
		s := NewSet()
		s.SetStdin(w, nil)
		defer s.End()
		read := make(chan []byte, 1)
		go func() {
			got, _ := io.ReadAll(r)
			read <- got
		}()
		typed := slices.Concat(before, keys, after)
		if len(before) > 0 && before[0]%2 == 0 { // without the keys, as likely as not
			typed = slices.Concat(before, keys[:len(keys)-1], after)
		}
		a := Attachment{Stdin: &cutReader{typed, int(cut)%7 + 1}, TTY: true, DetachKeys: keys, Interrupt: func() {}}
		err := s.pump(a, make(chan struct{}))
		w.Close()
		got := <-read
		want, detached := typed, false
		if i := bytes.Index(typed, keys); i >= 0 {
			want, detached = typed[:i], true
		}
		if !bytes.Equal(got, want) || errors.Is(err, ErrDetached) != detached || err != nil && !detached {
			t.Errorf("of %q came %q, %v; want %q", typed, got, err, want)
		}
	})
}

// cutReader gives at most n bytes at a time.
type cutReader struct {
	p []byte
	n int
}

func (c *cutReader) Read(p []byte) (int, error) {
	if len(c.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.p[:min(c.n, len(c.p))])
	c.p = c.p[n:]
	return n, nil
}
