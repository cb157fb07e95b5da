package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// store starts a server, and a loop that reaps this process' children through
// it, as PID 1 does.
func store(t *testing.T) (server *Server, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keeper.sock")
	server = NewServer(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err := server.Listen(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server, path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// spawn starts a shell whose end is not waited for.
func spawn(t *testing.T, script string) (pid int, pidfd *os.File) {
	t.Helper()
	fd := -1
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}})
	if err != nil {
		t.Fatal(err)
	}
	pidfd = os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { pidfd.Close() })
	pid = p.Pid
	p.Release()
	return pid, pidfd
}

// reap waits for pid as PID 1's loop does.
func reap(t *testing.T, s *Server, pid int) bool {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	adopted, err := s.Reap(pid, func() (status syscall.WaitStatus, err error) {
		_, err = syscall.Wait4(pid, &status, 0, nil)
		return status, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return adopted
}

func next(t *testing.T, c *Client) Exit {
	t.Helper()
	select {
	case e, ok := <-c.Exits():
		if !ok {
			t.Fatal("the connection ended")
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no exit came")
	}
	panic("unreachable")
}

func TestFilesSurviveTheClient(t *testing.T) {
	_, path := store(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	first := dial(t, path)
	if err := first.Put("a", []byte("record"), r, w); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "hello")
	r.Close()
	w.Close()
	first.Close()

	second := dial(t, path)
	e, err := second.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	if string(e.Record) != "record" || len(e.Files) != 2 || e.Process != nil {
		t.Fatalf("got %+v", e)
	}
	defer e.Files[0].Close()
	e.Files[1].Close()
	buf := make([]byte, 16)
	n, err := e.Files[0].Read(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if err := second.Delete("a"); err != nil {
		t.Fatal(err)
	}
	// The keeper held the last writer: its Delete ends the pipe.
	if n, err := e.Files[0].Read(buf); err != io.EOF {
		t.Errorf("after delete: read %d, %v; want EOF", n, err)
	}
	if _, err := second.Get("a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("get after delete: %v", err)
	}
}

func TestPutKeepsNonblocking(t *testing.T) {
	_, path := store(t)
	c := dial(t, path)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := c.Put("a", nil, r); err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v; Put made the file blocking", err)
	}
}

func TestReplaceKeepsProcess(t *testing.T) {
	s, path := store(t)
	c := dial(t, path)
	pid, pidfd := spawn(t, "sleep 100")
	for _, err := range []error{c.Put("a", []byte("1")), c.Adopt("a", pid, pidfd), c.Put("a", []byte("2"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || string(list[0].Record) != "2" || list[0].Process == nil || list[0].Process.PID != pid {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if start, err := startTime(pid); err != nil || start != list[0].Process.StartTime || start == 0 {
		t.Errorf("start time %d, want %d (%v)", list[0].Process.StartTime, start, err)
	}
	if got := s.Running(); !slices.Equal(got, []int{pid}) {
		t.Errorf("running: %v", got)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	if !reap(t, s, pid) {
		t.Error("the process was not taken for adopted")
	}
	e := next(t, c)
	if e.Key != "a" || e.PID != pid || e.Status.Signal() != syscall.SIGKILL || time.Since(e.At) > time.Minute {
		t.Errorf("exit: %+v", e)
	}
}

func TestExitOrders(t *testing.T) {
	tests := []struct {
		name  string
		order string // a adopts, x lets the process end, r reaps it
	}{
		{"adopted, then ended", "axr"},
		{"zombie when adopted", "xar"},
		{"reaped before adopted", "xra"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, path := store(t)
			c := dial(t, path)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			fd := -1
			p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read x; exit 42"},
				&os.ProcAttr{Files: []*os.File{r}, Sys: &syscall.SysProcAttr{PidFD: &fd}})
			if err != nil {
				t.Fatal(err)
			}
			pidfd := os.NewFile(uintptr(fd), "pidfd")
			defer pidfd.Close()
			if err := c.Put("k", nil); err != nil {
				t.Fatal(err)
			}
			for _, step := range test.order {
				switch step {
				case 'a':
					if err := c.Adopt("k", p.Pid, pidfd); err != nil {
						t.Fatal(err)
					}
				case 'x':
					w.Close()
					var info unix.Siginfo
					if err := unix.Waitid(unix.P_PID, p.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
						t.Fatal(err)
					}
				case 'r':
					reap(t, s, p.Pid)
				}
			}
			if e := next(t, c); e.Key != "k" || e.PID != p.Pid || e.Status.ExitStatus() != 42 {
				t.Errorf("exit: %+v", e)
			}
			late, err := dial(t, path).Get("k")
			if err != nil || late.Process == nil || !late.Process.Exited || late.Process.Status.ExitStatus() != 42 {
				t.Errorf("a later client got %+v, %v", late, err)
			}
		})
	}
}

func TestAdoptRefuses(t *testing.T) {
	_, path := store(t)
	c := dial(t, path)
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(self), "pidfd")
	defer file.Close()
	if err := c.Adopt("missing", os.Getpid(), file); !errors.Is(err, ErrNotFound) {
		t.Errorf("no entry: %v", err)
	}
	if err := c.Put("k", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Adopt("k", os.Getpid(), file); !errors.Is(err, ErrNoProcess) {
		t.Errorf("not a child: %v", err)
	}
	if _, err := c.Get("k"); err != nil {
		t.Errorf("the connection broke: %v", err)
	}
}

func TestListPages(t *testing.T) {
	_, path := store(t)
	c := dial(t, path)
	var want []string
	for i := range 40 {
		key := fmt.Sprintf("key-%02d", i)
		want = append(want, key)
		if err := c.Put(key, bytes.Repeat([]byte{byte(i)}, MaxRecord-i)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, e := range list {
		got = append(got, e.Key)
		if len(e.Record) != MaxRecord-i || e.Record[0] != byte(i) {
			t.Errorf("%s: wrong record", e.Key)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestLimits(t *testing.T) {
	_, path := store(t)
	c := dial(t, path)
	files := make([]*os.File, MaxFiles+1)
	for i := range files {
		files[i] = os.Stdin
	}
	for name, err := range map[string]error{
		"no key":       c.Put("", nil),
		"long key":     c.Put(strings.Repeat("k", MaxKey+1), nil),
		"large record": c.Put("k", make([]byte, MaxRecord+1)),
		"many files":   c.Put("k", nil, files...),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := c.Put(strings.Repeat("k", MaxKey), make([]byte, MaxRecord), files[:MaxFiles]...); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

func TestConcurrentCalls(t *testing.T) {
	_, path := store(t)
	c := dial(t, path)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			key := fmt.Sprint("k", i)
			for n := range 50 {
				record := []byte(fmt.Sprint(i, n))
				if err := c.Put(key, record, os.Stdin); err != nil {
					t.Error(err)
					return
				}
				e, err := c.Get(key)
				if err != nil || !bytes.Equal(e.Record, record) || len(e.Files) != 1 {
					t.Errorf("%s: %+v, %v", key, e, err)
					return
				}
				e.Files[0].Close()
			}
		})
	}
	group.Wait()
}

func TestMalformedCallEndsOnlyItsConnection(t *testing.T) {
	_, path := store(t)
	bad, good := dial(t, path), dial(t, path)
	if err := bad.conn.send([]byte{99, 0, 0, 0, 0}, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case _, ok := <-bad.Exits():
		if ok {
			t.Error("an exit came")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still connected")
	}
	if err := bad.Put("k", nil); err == nil {
		t.Error("put on a broken connection succeeded")
	}
	if err := good.Put("k", nil); err != nil {
		t.Error(err)
	}
}

// TestNothingLeaks counts descriptors: the keeper's are PID 1's.
func TestNothingLeaks(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	server, path := store(t)
	dial(t, path).Close() // the poller is up
	before := count()
	for range 20 {
		c := dial(t, path)
		for _, key := range []string{"a", "b"} {
			if err := c.Put(key, nil, os.Stdin, os.Stdout); err != nil {
				t.Fatal(err)
			}
		}
		c.conn.send([]byte{99}, []int{0, 1, 2}) // refused with its files
		c.Close()
	}
	server.Close()
	if after := count(); after > before-1 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestRoundTrip(t *testing.T) {
	at := time.Unix(1700000000, 123)
	calls := []call{
		{kind: kindPut, number: 7, key: "k", record: []byte("r")},
		{kind: kindGet, number: 8, key: "k"},
		{kind: kindList, number: 9},
		{kind: kindDelete, number: 10, key: "k"},
		{kind: kindAdopt, number: 1 << 31, key: "k", pid: 4194304},
	}
	for _, want := range calls {
		if got, err := decodeCall(want.encode()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	answers := []answer{
		{kind: kindReply, number: 1, code: codeNotFound, text: "no"},
		{kind: kindReply, number: 2, more: true, entries: []Entry{
			{Key: "a", Record: []byte("x")},
			{Key: "b", Record: []byte("y"), Process: &Process{PID: 5, StartTime: 1 << 40, Exited: true, Status: 0x2a00, At: at}},
		}},
		{kind: kindExit, entries: []Entry{{Key: "a", Process: &Process{PID: 5, Status: 9, Exited: true, At: at}}}},
	}
	for _, want := range answers {
		if got, err := decodeAnswer(want.encode()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func FuzzDecodeCall(f *testing.F) {
	f.Add(call{kind: kindPut, number: 7, key: "k", record: []byte("r")}.encode())
	f.Add(call{kind: kindAdopt, number: 1, key: "k", pid: 9}.encode())
	f.Fuzz(func(t *testing.T, packet []byte) {
		c, err := decodeCall(packet)
		if err != nil {
			return
		}
		if again := c.encode(); !bytes.Equal(again, packet) {
			t.Errorf("%x decodes and encodes to %x", packet, again)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(answer{kind: kindReply, number: 2, entries: []Entry{{Key: "b", Process: &Process{PID: 5}}}}.encode())
	f.Add(answer{kind: kindExit, entries: []Entry{{Key: "a", Process: &Process{PID: 5, Exited: true}}}}.encode())
	f.Fuzz(func(t *testing.T, packet []byte) {
		a, err := decodeAnswer(packet)
		if err != nil {
			return
		}
		if again := a.encode(); !bytes.Equal(again, packet) {
			t.Errorf("%x decodes and encodes to %x", packet, again)
		}
	})
}
