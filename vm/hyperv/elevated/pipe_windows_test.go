package elevated

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// holdDial keeps a connection open: Wine 8 hangs on the very first one to a pipe
// whose server has no other instance.
func holdDial(t *testing.T, l net.Listener, name string) {
	t.Helper()
	c, err := winio.DialPipe(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// listenAs is Listen, but says whose the pipe is: Wine would make it a group's.
func listenAs(t *testing.T, name, sid string) net.Listener {
	t.Helper()
	l, err := winio.ListenPipe(name, &winio.PipeConfig{SecurityDescriptor: "O:" + sid + access(sid)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestService has the service and its client at the two ends of the real pipe, with
// the real rights, before the stand-in for the system.
func TestService(t *testing.T) {
	if os.Getenv("BERTH_HCS_STANDIN") != "1" {
		t.Skip("needs the stand-in for computecore.dll: run make check-windows")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	t.Setenv("HCS_TRACE", trace)
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dialPipe(t.Context(), Pipe); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial of a service that does not run: %v", err)
	}
	l := listenAs(t, Pipe, self.User.Sid.String())
	ctx, cancel := context.WithCancel(t.Context())
	s := &Server{Identify: Identify, Log: slog.New(slog.DiscardHandler)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	holdDial(t, l, Pipe)
	c := client{func(ctx context.Context) (net.Conn, error) { return dialPipe(ctx, Pipe) }, check}
	if version, err := c.Probe(t.Context()); err != nil || !strings.HasPrefix(version, "Hyper-V") {
		t.Fatalf("Probe() = %q, %v", version, err)
	}
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	machine, err := c.Create(t.Context(), compute.Design{ID: id, Name: "dev", CPUs: 1, MemoryMiB: 256, Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	if err := machine.Do(t.Context(), compute.Order{Op: compute.OpStart}); err != nil {
		t.Fatal(err)
	}
	if err := machine.Do(t.Context(), compute.Order{Op: compute.OpShutDown}); err != nil {
		t.Fatal(err)
	}
	if e := <-machine.Events(); !e.Exited || e.Forced {
		t.Errorf("event %+v", e)
	}
	if err := machine.Do(t.Context(), compute.Order{Op: compute.OpPause}); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("an order for a machine that is off: %v", err)
	}
	machine.Close()
	awaitTrace(t, trace, "revoke")
	if text, err := os.ReadFile(trace); !strings.Contains(string(text), self.User.Sid.String()) {
		t.Errorf("the system's calls lack the user (%v):\n%s", err, text)
	}
	cancel()
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func awaitTrace(t *testing.T, trace, call string) {
	t.Helper()
	soon(t, call, func() bool {
		text, _ := os.ReadFile(trace)
		return strings.Contains(string(text), call)
	})
}

func TestDescriptors(t *testing.T) {
	for _, sddl := range []string{access("S-1-5-21-1-2-3-1000"), serviceAccess("S-1-5-21-1-2-3-1000")} {
		if _, err := windows.SecurityDescriptorFromString(sddl); err != nil {
			t.Errorf("%s: %v", sddl, err)
		}
	}
}

func TestOwnPipeIsTrusted(t *testing.T) {
	const name = `\\.\pipe\berth-owner-test`
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	l := listenAs(t, name, self.User.Sid.String())
	defer l.Close()
	go l.Accept()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := dialPipe(ctx, name)
	if err != nil {
		t.Fatalf("the user's own pipe: %v", err)
	}
	c.Close()
}
