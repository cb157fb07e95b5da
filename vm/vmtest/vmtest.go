// Package vmtest is the acceptance suite of vm.Driver: what it checks is what
// every driver promises, on top of what the interfaces' comments say.
//
//   - A machine runs once. Wait tells why it ended, before and after Close; a
//     machine that was closed without ever being started ended with ErrClosed.
//   - After Close every other call fails with ErrClosed, and nothing is left:
//     no goroutine, process, file descriptor, nor file in the machine's directory.
//   - When the machine ends, its connections break and its listeners close. When
//     the guest restarts, its connections break and the host's listeners stay.
//   - A vm.Saver's guest goes on in another machine where it was saved in the first;
//     one that cannot be saved runs on.
//
// The guest has to run vm/internal/testguest.
package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

// How long a machine may take before the suite calls it broken. They are
// generous: machines are emulated on hosts that are busy.
const (
	bootTimeout = 2 * time.Minute
	stopTimeout = time.Minute
	killTimeout = 20 * time.Second
)

// Run checks driver with machines like cfg, whose guest runs testguest. It boots
// one machine at a time. cfg's Console and Reset are replaced.
func Run(t *testing.T, driver vm.Driver, cfg vm.Config) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	tests := []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"Probe", testProbe},
		{"Invalid", testInvalid},
		{"NeverStarted", testNeverStarted},
		{"StartGivenUp", testStartGivenUp},
		{"Life", testLife},
		{"PowerOff", testPowerOff},
		{"Transport", testTransport},
		{"Restart", testRestart},
		{"CloseRunning", testCloseRunning},
		{"CloseStarting", testCloseStarting},
		{"Save", testSave},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Cleanup(watch(t))
			tt.run(t, &bench{driver: driver, cfg: cfg})
		})
	}
}

// watch notes what the process holds and returns a check that it holds no more.
func watch(t *testing.T) func() {
	goroutines := goleak.IgnoreCurrent()
	fds, children := descriptors(), processes()
	return func() {
		if t.Failed() {
			return // the failure is the news, not what it left behind
		}
		if err := goleak.Find(goroutines); err != nil {
			t.Errorf("goroutines left: %v", err)
		}
		if more := added(fds, descriptors()); len(more) > 0 {
			t.Errorf("file descriptors left: %s", strings.Join(more, ", "))
		}
		if more := added(children, processes()); len(more) > 0 {
			t.Errorf("processes left: %s", strings.Join(more, ", "))
		}
	}
}

// descriptors lists the open files of this process, where the host tells.
func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var fds []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime's own poller and the directory just read come and go.
		if err != nil || strings.Contains(to, "eventpoll") || strings.HasPrefix(to, "anon_inode:[eventfd]") {
			continue
		}
		if strings.HasPrefix(to, "/proc/") {
			continue
		}
		fds = append(fds, e.Name()+" "+to)
	}
	return fds
}

// processes lists the children of this process, where the host tells.
func processes() []string {
	var pids []string
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		data, _ := os.ReadFile(f)
		pids = append(pids, strings.Fields(string(data))...)
	}
	return pids
}

func added(before, after []string) []string {
	had := make(map[string]bool, len(before))
	for _, s := range before {
		had[s] = true
	}
	var more []string
	for _, s := range after {
		if !had[s] {
			more = append(more, s)
		}
	}
	return more
}

// bench is where one test works on its machines.
type bench struct {
	driver vm.Driver
	cfg    vm.Config
}

// box is a machine on the bench.
type box struct {
	vm.Machine
	dir     string
	console *recorder
	resets  chan struct{}
	ready   net.Listener // takes the guest's ready calls
}

// tempDir returns an empty directory with a path short enough for sockets. It
// must be empty again when the test ends.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !t.Failed() {
				t.Errorf("file left in the machine's directory: %s", e.Name())
			}
		}
		os.RemoveAll(dir)
	})
	return dir
}

// machine makes a machine that listens for its guest. It is closed when the test
// ends.
func (b *bench) machine(t *testing.T) *box {
	t.Helper()
	x := &box{console: &recorder{}, resets: make(chan struct{}, 100), dir: tempDir(t)}
	cfg := b.cfg
	cfg.Console = x.console
	cfg.Reset = func() { x.resets <- struct{}{} }
	m, err := b.driver.New(t.Context(), cfg, x.dir)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	x.Machine = m
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", x.console)
		}
	})
	if x.ready, err = m.Listen(testguest.PortReady); err != nil {
		t.Fatalf("Listen before Start: %v", err)
	}
	return x
}

// booted makes a machine and boots it until its guest calls.
func (b *bench) booted(t *testing.T) (*box, net.Conn) {
	t.Helper()
	x := b.machine(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	begin := time.Now()
	if err := x.Start(ctx); err != nil {
		t.Fatalf("Start: %v", err)
	}
	started := time.Since(begin)
	ready := x.called(t)
	t.Logf("started in %v, guest called after %v", started.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	return x, ready
}

// called waits for the guest's call at boot.
func (x *box) called(t *testing.T) net.Conn {
	t.Helper()
	c := accept(t, x.ready, bootTimeout)
	c.SetDeadline(time.Now().Add(bootTimeout))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the guest's call: %q, %v", line, err)
	}
	c.SetDeadline(time.Time{})
	return c
}

// accept takes one connection.
func accept(t *testing.T, l net.Listener, within time.Duration) net.Conn {
	t.Helper()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		got <- accepted{c, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			t.Fatalf("Accept: %v", a.err)
		}
		t.Cleanup(func() { a.c.Close() })
		return a.c
	case <-time.After(within):
		l.Close()
		t.Fatalf("nobody called within %v", within)
	}
	return nil
}

// dial connects to the guest.
func (x *box) dial(t *testing.T, port uint32) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	c, err := x.Dial(ctx, port)
	if err != nil {
		t.Fatalf("Dial(%d): %v", port, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// order tells the guest what to do and returns its answer.
func (x *box) order(t *testing.T, order string) string {
	t.Helper()
	c := x.dial(t, testguest.PortOrder)
	defer c.Close()
	c.SetDeadline(time.Now().Add(bootTimeout))
	if _, err := fmt.Fprintln(c, order); err != nil {
		t.Fatalf("order %q: %v", order, err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	switch order {
	case "poweroff", "reboot", "fault":
		return "" // the end may overtake the answer
	}
	if err != nil {
		t.Fatalf("order %q: %v", order, err)
	}
	return strings.TrimSpace(answer)
}

// drainResets forgets the resets that were reported.
func (x *box) drainResets() {
	for {
		select {
		case <-x.resets:
		default:
			return
		}
	}
}

// waited returns what Wait says, which must come soon.
func (x *box) waited(t *testing.T, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), within)
	defer cancel()
	err := x.Wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the machine has not ended within %v", within)
	}
	return err
}

// stop stops the machine politely.
func (x *box) stop(t *testing.T, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := x.Stop(ctx); err != nil {
		t.Fatalf("Stop: %v", err)
	}
}

// broken checks that reading from a connection ends soon, with an error.
func broken(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(killTimeout))
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection outlived its guest")
	}
}

// wantErr checks an error's kind.
func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// recorder keeps console output, and notices calls that overlap.
type recorder struct {
	mu      sync.Mutex
	text    strings.Builder
	busy    bool
	overlap bool
}

// Write implements io.Writer.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.overlap = r.overlap || r.busy
	r.busy = true
	r.mu.Unlock()
	runtime.Gosched()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	return r.text.Write(p)
}

// String returns what was written so far.
func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// waitFor waits until the console shows a text.
func (r *recorder) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(killTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(r.String(), text) {
			return
		}
	}
	t.Errorf("the console never showed %q", text)
}
