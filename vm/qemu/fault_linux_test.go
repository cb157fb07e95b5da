package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm"
)

// standIn behaves as QEMU would: the last word of the mode says what goes wrong.
func standIn(mode string) {
	if len(os.Args) > 1 && os.Args[1] == "-help" {
		fmt.Println("QEMU emulator version 7.2.22")
		os.Exit(0)
	}
	switch mode {
	case "fails":
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: -device toaster: it burns")
		os.Exit(1)
	case "silent":
		time.Sleep(time.Hour)
	}
	l, err := net.FileListener(os.NewFile(firstFD, "qmp"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	conn, err := l.Accept()
	if err != nil {
		os.Exit(1)
	}
	say := func(text string) { fmt.Fprintln(conn, text) }
	event := func(name, data string) {
		now := time.Now()
		say(fmt.Sprintf(`{"event":%q,"data":%s,"timestamp":{"seconds":%d,"microseconds":%d}}`, name, data, now.Unix(), now.Nanosecond()/1000))
	}
	conts := 0
	say(`{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}},"capabilities":[]}}`)
	for commands := json.NewDecoder(conn); ; {
		var command struct{ Execute string }
		if commands.Decode(&command) != nil {
			return
		}
		if mode == "hangs" && command.Execute == "system_powerdown" {
			time.Sleep(time.Hour)
		}
		if command.Execute == "query-status" {
			status := "io-error"
			if mode == "stuck" {
				status = "internal-error"
			}
			say(fmt.Sprintf(`{"return":{"status":%q,"running":false,"singlestep":false}}`, status))
			continue
		}
		say(`{"return":{}}`)
		switch command.Execute {
		case "cont":
			if conts++; mode == "full" && conts <= 2 {
				event("BLOCK_IO_ERROR", `{"device":"","nospace":true,"operation":"write","action":"stop","reason":"No space left on device"}`)
				event("STOP", "{}")
			} else if mode == "full" {
				os.Exit(0)
			}
			misbehave(mode, event)
		case "system_powerdown":
			event("POWERDOWN", "{}")
			event("SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`)
			os.Exit(0)
		}
	}
}

// misbehave does, once the machine runs, what the mode says.
func misbehave(mode string, event func(name, data string)) {
	switch mode {
	case "crashes":
		fmt.Fprintln(os.Stderr, "Assertion failed: the sky is falling")
		os.Exit(134)
	case "panics":
		event("GUEST_PANICKED", `{"action":"pause"}`)
		event("SHUTDOWN", `{"guest":true,"reason":"guest-panic"}`)
		os.Exit(0)
	case "stuck":
		event("STOP", "{}")
	case "ended":
		event("SHUTDOWN", `{"guest":false,"reason":"host-signal"}`)
		os.Exit(0)
	case "resets":
		for range 3 {
			event("RESET", `{"guest":true,"reason":"guest-reset"}`)
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(sameReset + 200*time.Millisecond)
		event("RESET", `{"guest":true,"reason":"guest-reset"}`)
	}
}

// standInDriver returns a driver whose QEMU is this program, in some mode.
func standInDriver(t testing.TB, mode string) *Driver {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	body := fmt.Sprintf("#!/bin/sh\nexec env %s=%s %s \"$@\"\n", standInEnv, mode, self)
	if err := os.WriteFile(name, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	return New(Options{Binary: name, Acceleration: TCG})
}

// plainConfig returns a machine whose files exist.
func plainConfig(t testing.TB) vm.Config {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Config{Name: "fault", CPUs: 1, MemoryMiB: 256, Kernel: kernel}
}

// standInMachine makes a machine that is run by this program.
func standInMachine(t *testing.T, mode string, cfg vm.Config) *machine {
	t.Helper()
	leak := goleak.IgnoreCurrent()
	m, err := standInDriver(t, mode).New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := goleak.Find(leak); err != nil {
			t.Error(err)
		}
	})
	return m.(*machine)
}

func start(t testing.TB, m vm.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, m vm.Machine) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := m.Wait(ctx)
	if ctx.Err() != nil {
		t.Fatal("the machine does not end")
	}
	return err
}

// TestEnds checks what Wait makes of the ways in which QEMU ends.
func TestEnds(t *testing.T) {
	tests := []struct{ mode, want string }{
		{"crashes", "QEMU failed: exit status 134: Assertion failed: the sky is falling"},
		{"panics", "the guest's kernel panicked: see the machine's log"},
		{"ended", "QEMU was ended from outside (host-signal)"},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			m := standInMachine(t, tt.mode, plainConfig(t))
			m.Start(t.Context()) // the end may overtake the answer
			err := waitFor(t, m)
			if err == nil || err.Error() != tt.want {
				t.Errorf("Wait() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestInstructionFails checks that a machine ends whose code the accelerator cannot
// run, and that the accelerator is not trusted again.
func TestInstructionFails(t *testing.T) {
	m := standInMachine(t, "stuck", plainConfig(t))
	faults := make(chan string, 1)
	m.host.distrust = func(fault string) { faults <- fault }
	m.Start(t.Context()) // the end may overtake the answer
	if err := waitFor(t, m); err == nil || !strings.HasPrefix(err.Error(), "TCG cannot run the guest") {
		t.Errorf("Wait() = %v", err)
	}
	select {
	case <-faults:
	default:
		t.Error("nothing was noted about the accelerator")
	}
}

func TestOrderlyStop(t *testing.T) {
	m := standInMachine(t, "works", plainConfig(t))
	start(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := waitFor(t, m); err != nil {
		t.Errorf("Wait() = %v, want nil", err)
	}
}

func TestStartFails(t *testing.T) {
	m := standInMachine(t, "fails", plainConfig(t))
	err := m.Start(t.Context())
	const want = `cannot start machine "fault": QEMU failed: exit status 1: -device toaster: it burns`
	if err == nil || err.Error() != want {
		t.Errorf("Start() = %v, want %q", err, want)
	}
	if err := waitFor(t, m); err == nil {
		t.Error("Wait() = nil")
	}
}

// TestStartSilent starts a QEMU that never answers.
func TestStartSilent(t *testing.T) {
	m := standInMachine(t, "silent", plainConfig(t))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := m.Start(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "QEMU does not answer") {
		t.Errorf("Start() = %v", err)
	}
	assertGone(t, m.proc.pid)
}

// TestStopSilent stops a machine whose Start still waits for QEMU.
func TestStopSilent(t *testing.T) {
	m := standInMachine(t, "silent", plainConfig(t))
	started := make(chan error, 1)
	go func() { started <- m.Start(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	time.Sleep(50 * time.Millisecond)
	if err := m.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := <-started; !errors.Is(err, vm.ErrKilled) {
		t.Errorf("Start() = %v, want %v", err, vm.ErrKilled)
	}
}

// TestStopHung stops a machine whose QEMU answers no more.
func TestStopHung(t *testing.T) {
	m := standInMachine(t, "hangs", plainConfig(t))
	start(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Stop took %v", took)
	}
	if err := waitFor(t, m); !errors.Is(err, vm.ErrKilled) {
		t.Errorf("Wait() = %v, want %v", err, vm.ErrKilled)
	}
	assertGone(t, m.proc.pid)
}

// TestStopped stops a QEMU that does not even run.
func TestStopFrozen(t *testing.T) {
	m := standInMachine(t, "works", plainConfig(t))
	start(t, m)
	if err := syscall.Kill(m.proc.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	assertGone(t, m.proc.pid)
}

func TestKilledFromOutside(t *testing.T) {
	m := standInMachine(t, "works", plainConfig(t))
	start(t, m)
	if err := syscall.Kill(m.proc.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(t, m); err == nil || errors.Is(err, vm.ErrKilled) || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Wait() = %v, want QEMU's signal", err)
	}
}

// TestReset checks that resets close to each other are one restart.
func TestReset(t *testing.T) {
	var resets atomic.Int32
	cfg := plainConfig(t)
	cfg.Reset = func() { resets.Add(1) }
	m := standInMachine(t, "resets", cfg)
	start(t, m)
	time.Sleep(sameReset + 500*time.Millisecond)
	if got := resets.Load(); got != 2 {
		t.Errorf("%d restarts were reported, want 2", got)
	}
}

// TestDiskFull checks that a machine that waits for space on the host goes on.
func TestDiskFull(t *testing.T) {
	m := standInMachine(t, "full", plainConfig(t))
	start(t, m)
	begin := time.Now()
	if err := waitFor(t, m); err != nil { // it ends when it is told to go on for the second time
		t.Errorf("Wait() = %v", err)
	}
	if took := time.Since(begin); took < 2*retryEvery-time.Second {
		t.Errorf("two tries took %v", took)
	}
}

// TestCloseDiskFull checks that a machine that waits for space can be closed.
func TestCloseDiskFull(t *testing.T) {
	m := standInMachine(t, "full", plainConfig(t))
	start(t, m)
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	m.Close()
	if took := time.Since(begin); took > retryEvery/2 {
		t.Errorf("Close took %v", took)
	}
}

// assertGone checks that a process has ended.
func assertGone(t *testing.T, pid int) {
	t.Helper()
	for range 200 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d still runs", pid)
}

// daemon is a program that runs a machine until it is killed.
func daemon(dir string) {
	os.Unsetenv(daemonEnv)
	self, _ := os.Executable()
	wrapper := filepath.Join(dir, "qemu-system-x86_64")
	body := fmt.Sprintf("#!/bin/sh\nexec env %s=works %s \"$@\"\n", standInEnv, self)
	kernel := filepath.Join(dir, "kernel")
	err := errors.Join(os.WriteFile(wrapper, []byte(body), 0o700), os.WriteFile(kernel, nil, 0o600))
	if err != nil {
		fmt.Println(err)
		return
	}
	d := New(Options{Binary: wrapper, Acceleration: TCG})
	m, err := d.New(context.Background(), vm.Config{Name: "daemon", CPUs: 1, MemoryMiB: 256, Kernel: kernel}, dir)
	if err == nil {
		err = m.Start(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.(*machine).proc.pid)
	time.Sleep(time.Hour)
}

// TestDaemonKilled checks that QEMU does not outlive the program that runs it,
// and that the next one copes with what is left.
func TestDaemonKilled(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), daemonEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the daemon says %q", line)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("QEMU does not run: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	assertGone(t, pid)
	if _, err := os.Stat(filepath.Join(dir, pidFile)); err != nil {
		t.Errorf("the killed daemon left no pid file: %v", err)
	}
	m, err := standInDriver(t, "works").New(t.Context(), plainConfig(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	start(t, m)
}

func TestDiskInUse(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	make1 := func(readOnly bool) (vm.Machine, error) {
		cfg := plainConfig(t)
		cfg.Disks = []vm.Disk{{Path: disk, ReadOnly: readOnly}}
		return standInDriver(t, "works").New(t.Context(), cfg, t.TempDir())
	}
	first, err := make1(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		if m, err := make1(readOnly); err == nil || !strings.Contains(err.Error(), "in use by another machine") {
			if err == nil {
				m.Close()
			}
			t.Errorf("New with a disk in use (read-only %t) = %v", readOnly, err)
		}
	}
	first.Close()
	for range 2 { // read-only disks are shared
		m, err := make1(true)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
	}
}

// syncBuffer collects console output.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns what was written.
func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
