package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

// echoNet is the far end of an Ethernet cable that answers one kind of frame.
type echoNet struct{ mac net.HardwareAddr }

func (n echoNet) MAC() net.HardwareAddr { return n.mac }

func (n echoNet) ServeDatagram(context.Context, net.Conn) error { return errors.ErrUnsupported }

// ServeStream answers each frame of the experimental type with "pong".
func (n echoNet) ServeStream(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := bufio.NewReader(conn)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		frame := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(r, frame); err != nil {
			return err
		}
		if len(frame) < 18 || !bytes.Equal(frame[12:14], []byte{0x88, 0xb5}) {
			continue
		}
		answer := make([]byte, 64)
		binary.BigEndian.PutUint32(answer, 60)
		copy(answer[4:], frame[6:12])
		copy(answer[10:], []byte{2, 0, 0, 0, 0, 1, 0x88, 0xb5})
		copy(answer[18:], "pong")
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

// realMachine boots the suite's guest and returns the machine, and what gives
// orders to the guest.
func realMachine(t testing.TB, d *Driver, cfg vm.Config) (*machine, func(string) string) {
	t.Helper()
	vmm, err := d.New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmm.Close() })
	ready, err := vmm.Listen(testguest.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	start(t, vmm)
	time.AfterFunc(2*time.Minute, func() { ready.Close() })
	c, err := ready.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return vmm.(*machine), func(order string) string {
		t.Helper()
		answer, err := tell(t, vmm, order)
		if err != nil {
			t.Errorf("%s: %v", order, err)
		}
		return answer
	}
}

// tell gives the guest an order and returns its answer.
func tell(t testing.TB, m vm.Machine, order string) (string, error) {
	c, err := m.Dial(t.Context(), testguest.PortOrder)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintln(c, order); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// TestDevices checks what the contract suite does not: disks, network, CPUs and
// memory, on one machine.
func TestDevices(t *testing.T) {
	cfg := guestConfig(t)
	const size = 64 << 20
	data, system := filepath.Join(t.TempDir(), "da,ta"), filepath.Join(t.TempDir(), "system")
	if err := os.WriteFile(system, append([]byte("read only\n"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data, bytes.Repeat([]byte{'x'}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.CPUs = 2
	cfg.Disks = []vm.Disk{{Path: system, ReadOnly: true, Serial: "system"}, {Path: data, Serial: "data-1"}}
	cfg.Network = echoNet{net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}}
	m, order := realMachine(t, New(Options{}), cfg)

	tests := []struct{ order, want string }{
		{"disk system read", "read read only"},
		{"disk system write x", "error: "},
		{"disk data-1 discard", "ok"},
		{"disk data-1 write kept through a power cut", "ok"},
		{"disk data-1 read", "read kept through a power cut"},
		{"net", "5a94efe40cee pong"},
		{"cpus", "2"},
	}
	for _, tt := range tests {
		if got := order(tt.order); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.order, got, tt.want)
		}
	}
	if got := order("cmdline"); !strings.Contains(got, "tsc=reliable no_timer_check tsc_early_khz=") {
		t.Errorf("the kernel's command line is %q", got)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(data, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > size/2 {
		t.Errorf("%d of %d bytes are still allocated after a discard", used, size)
	}
	assertHardened(t, m.proc.pid)

	if err := syscall.Kill(m.proc.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(t, m); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Wait() = %v", err)
	}
	if got, err := os.ReadFile(data); err != nil || !bytes.HasPrefix(got, []byte("kept through a power cut\n")) {
		t.Errorf("the disk begins with %.30q, %v", got, err)
	}
}

// assertHardened checks that QEMU is in its sandbox, and named.
func assertHardened(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Seccomp:\t2", "Name:\tberth-contract"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("/proc/%d/status does not have %q", pid, want)
		}
	}
}

// TestPanic checks that a kernel that panics restarts, as its command line says,
// and that the host hears of it.
func TestPanic(t *testing.T) {
	cfg := guestConfig(t)
	reset := make(chan struct{}, 10)
	cfg.Reset = func() { reset <- struct{}{} }
	var console syncBuffer
	cfg.Console = &console
	m, _ := realMachine(t, New(Options{}), cfg)
	tell(t, m, "fault") // the end may overtake the answer
	select {
	case <-reset:
	case <-time.After(time.Minute):
		t.Fatal("the host does not hear of the restart")
	}
	if !strings.Contains(console.String(), "Kernel panic - not syncing") {
		t.Errorf("the console does not show the panic:\n%s", console.String())
	}
}

// TestHostDiskFull checks on a real guest that a write waits for space on the
// host, and is then done.
func TestHostDiskFull(t *testing.T) {
	cfg := guestConfig(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs root, to mount a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	data, hog := filepath.Join(dir, "data"), filepath.Join(dir, "hog")
	if err := os.WriteFile(data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(data, 1<<20); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(hog, make([]byte, 64<<10), 0o600) // as much as there is
	cfg.Disks = []vm.Disk{{Path: data, Serial: "data"}}
	m, order := realMachine(t, New(Options{}), cfg)
	answer := make(chan string, 1)
	go func() { answer <- order("disk data write patience") }()
	select {
	case got := <-answer:
		t.Fatalf("a write without space on the host: %q", got)
	case <-time.After(time.Second):
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-answer:
		if got != "ok" {
			t.Errorf("the write, once there was space: %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("the write is not tried again")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestMemoryReturns checks that memory the guest has freed goes back to the host.
func TestMemoryReturns(t *testing.T) {
	cfg := guestConfig(t)
	cfg.MemoryMiB = 512
	m, order := realMachine(t, New(Options{}), cfg)
	before := guestMemory(t, m.proc.pid)
	if got := order("memory 200"); got != "ok" {
		t.Fatal(got)
	}
	if now := guestMemory(t, m.proc.pid); now < before+150 {
		t.Errorf("the guest uses 200 MiB, the host sees %d more", now-before)
	}
	var now int
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if now = guestMemory(t, m.proc.pid); now < before+50 {
			t.Logf("%d MiB before, %d after", before, now)
			return
		}
	}
	t.Errorf("the guest's memory took %d MiB of the host's, and %d after 200 were freed", before, now)
}

// guestMemory is how much of the host's memory the guest's takes, in MiB.
func guestMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	_, rest, _ := strings.Cut(string(status), "RssShmem:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// TestFrozen stops a real QEMU that does not run.
func TestFrozen(t *testing.T) {
	cfg := guestConfig(t)
	m, _ := realMachine(t, New(Options{}), cfg)
	if err := syscall.Kill(m.proc.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Stop took %v", took)
	}
	if err := waitFor(t, m); !errors.Is(err, vm.ErrKilled) {
		t.Errorf("Wait() = %v", err)
	}
	assertGone(t, m.proc.pid)
}

// TestBadKernel checks that a file that is no kernel is a clear error.
// TestPause freezes a machine: what it was asked is answered once it goes on.
func TestPause(t *testing.T) {
	for name, o := range map[string]Options{"vsock": {}, "serial": {Serial: true}} {
		t.Run(name, func(t *testing.T) {
			m, _ := realMachine(t, New(o), guestConfig(t))
			c, err := m.Dial(t.Context(), testguest.PortEcho)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 2 { // a paused machine can be paused
				if err := m.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			wrote := make(chan error, 1)
			go func() { // a vsock takes nothing from a machine that is paused
				_, err := c.Write([]byte("x"))
				wrote <- err
			}()
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a paused machine answers: %v", err)
			}
			for range 2 {
				if err := m.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("after Resume: %v", err)
			}
			if err := <-wrote; err != nil {
				t.Errorf("Write: %v", err)
			}
			tell(t, m, "poweroff") // the end may overtake the answer
			if err := waitFor(t, m); err != nil {
				t.Error(err)
			}
			if err := m.Pause(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
				t.Errorf("Pause of a machine that has ended: %v", err)
			}
		})
	}
}

func TestBadKernel(t *testing.T) {
	needVM(t)
	cfg := plainConfig(t)
	if err := os.WriteFile(cfg.Kernel, bytes.Repeat([]byte("no kernel "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{}).New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Start(ctx); err == nil || !strings.Contains(err.Error(), "QEMU failed") {
		t.Errorf("Start() = %v", err)
	}
}

// TestArm64 checks that QEMU accepts the arguments of an arm64 machine with all
// its devices, and that the KVM probe's code ends it.
func TestArm64(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-aarch64"); err != nil {
		t.Skip("qemu-system-aarch64 is not installed: " + remedy("linux", "arm64"))
	}
	cfg := plainConfig(t)
	if err := os.WriteFile(cfg.Kernel, switchOff, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.CPUs = 2
	cfg.Disks = []vm.Disk{{Path: disk, Serial: "data"}}
	cfg.Network = echoNet{net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	cfg.Shares = []vm.Share{{Tag: "folder", Server: &oneFile{}}}
	m, err := New(Options{Arch: "arm64", Acceleration: TCG}).New(t.Context(), cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	start(t, m)
	if err := waitFor(t, m); err != nil {
		t.Errorf("Wait() = %v, want nil: the guest switched itself off", err)
	}
}
