//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// framedMachine is QEMU's machine behind streams that close whole only, as those
// of a Mac do.
type framedMachine struct{ vm.Machine }

func (m framedMachine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := m.Machine.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return framed.New(struct{ net.Conn }{c}), nil
}

func (m framedMachine) Listen(port uint32) (net.Listener, error) {
	l, err := m.Machine.Listen(port)
	if err != nil {
		return nil, err
	}
	return framed.Listener{Listener: l}, nil
}

// TestFramedStreams boots the guest as a Mac does: its streams carry their own
// half-close, and it announces each boot.
func TestFramedStreams(t *testing.T) {
	if os.Getenv("BERTH_VM") != "1" {
		t.Skip("boots a VM: run with BERTH_VM=1, or make test-e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m := framedMachine{bareBox(t, ctx, qemu.Options{}, deadCable{}, framed.Param)}
	boots, hellos := listen(t, m, framed.BootPort), listen(t, m, wire.PortHelloHost)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	orders := framedBoot(t, boots, hellos)
	askHTTP(t, ctx, m)
	if err := wire.WriteFrame(orders, wire.Order{ID: 1, Op: wire.OpReboot}); err != nil {
		t.Fatal(err)
	}
	orders = framedBoot(t, boots, hellos)
	askHTTP(t, ctx, m)
	if err := wire.WriteFrame(orders, wire.Order{ID: 1, Op: wire.OpPowerOff}); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Errorf("Wait() = %v, want an orderly power-off", err)
	}
}

// bareBox makes a machine of the guest's image, with kernel parameters of its own,
// that no daemon serves.
func bareBox(t *testing.T, ctx context.Context, o qemu.Options, network vm.Network, parameters ...string) vm.Machine {
	t.Helper()
	img, err := images.Open(filepath.Join(root, "bin", "image"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "data.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 4<<30); err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "bf-") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	var console bytes.Buffer // read after Close only
	m, err := qemu.New(o).New(ctx, vm.Config{
		Name: "bare", CPUs: 1, MemoryMiB: 1024, Kernel: img.Kernel, Initrd: img.Initrd,
		Cmdline: append(parameters, img.Cmdline...),
		Disks: []vm.Disk{
			{Path: img.Root, ReadOnly: true, Serial: images.RootSerial},
			{Path: disk, Serial: images.DataSerial},
		},
		Network: network,
		Console: &console,
	}, run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("console:\n%s", &console)
		}
	})
	return m
}

// deadCable leads nowhere.
type deadCable struct{}

func (deadCable) MAC() net.HardwareAddr { return net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee} }

func (deadCable) ServeStream(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_, err := io.Copy(io.Discard, conn)
	return err
}

func (c deadCable) ServeDatagram(ctx context.Context, conn net.Conn) error {
	return c.ServeStream(ctx, conn)
}

func listen(t *testing.T, m vm.Machine, port uint32) net.Listener {
	t.Helper()
	l, err := m.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func take(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	stop := time.AfterFunc(patience, func() { l.Close() })
	defer stop.Stop()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// framedBoot takes the guest's announcement and its hello, in that order, and
// waits until its engine serves. It returns the hello stream.
func framedBoot(t *testing.T, boots, hellos net.Listener) net.Conn {
	t.Helper()
	boot := take(t, boots)
	time.Sleep(200 * time.Millisecond) // it waits until this stream ends
	if err := boot.(*framed.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return takeHello(t, hellos)
}

// takeHello takes the guest's hello and waits until its engine serves. It returns
// the hello stream.
func takeHello(t *testing.T, hellos net.Listener) net.Conn {
	t.Helper()
	c := take(t, hellos)
	var hello wire.Hello
	if err := wire.ReadFrame(c, &hello); err != nil {
		t.Fatal(err)
	}
	err := wire.WriteFrame(c, wire.Welcome{Protocol: wire.Protocol, Secret: make([]byte, wire.SecretSize), Time: time.Now(), Hostname: "bare",
		Network: wire.Network{Address: "192.168.127.2/24", Gateway: "192.168.127.1", MTU: 1500}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		var n wire.Note
		if err := wire.ReadFrame(c, &n); err != nil {
			t.Fatal(err)
		}
		if n.Phase != nil && n.Phase.Name == "engine" && n.Phase.Done {
			break
		}
	}
	go io.Copy(io.Discard, c) // its further notes
	return c
}

// askHTTP asks the engine and ends its own direction, upon which the engine ends
// the other.
func askHTTP(t *testing.T, ctx context.Context, m vm.Machine) {
	t.Helper()
	c, err := m.Dial(ctx, wire.PortDocker)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET /version HTTP/1.1\r\nHost: docker\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(body), "linux") {
		t.Errorf("GET /version: %s, %v", body, err)
	}
	if err := c.(*framed.Conn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the answer: %d bytes, %v, want the end", n, err)
	}
}
