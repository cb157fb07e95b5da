//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/host/usernet"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// scsiQEMU is a QEMU whose disks are SCSI's, without serials, as Hyper-V's are.
const scsiQEMU = `#!/bin/bash
[ "$1" = --version ] && exec %[1]s "$@"
args=() lun=0
for a; do
	case $a in
	virtio-blk-pci,drive=*)
		[ $lun = 0 ] && args+=(virtio-scsi-pci,id=scsi -device)
		drive=${a#*drive=}
		a=scsi-hd,bus=scsi.0,scsi-id=0,lun=$lun,drive=${drive%%%%,*}
		lun=$((lun + 1)) ;;
	esac
	args+=("$a")
done
exec %[1]s "${args[@]}"
`

// TestMissingDevices boots the guest as on a hypervisor without a network card,
// without serials of disks, and that does not restart by itself. What needs Hyper-V
// itself is not in it.
func TestMissingDevices(t *testing.T) {
	if os.Getenv("BERTH_VM") != "1" {
		t.Skip("boots a VM: run with BERTH_VM=1, or make test-e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	program := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(program, fmt.Appendf(nil, scsiQEMU, "/usr/bin/qemu-system-x86_64"), 0o700); err != nil {
		t.Fatal(err)
	}
	network, err := usernet.New(usernet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	m := bareBox(t, ctx, qemu.Options{Binary: program}, nil, devices.Cable, devices.MAC(network.MAC()),
		devices.Disks([]string{"berth-root", "berth-data"}), devices.Restart)
	hellos, cables, restarts := listen(t, m, wire.PortHelloHost), listen(t, m, devices.CablePort), listen(t, m, devices.RestartPort)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for boot := range 2 {
		plugged := make(chan error, 1)
		go func() {
			c, err := cables.Accept()
			if err == nil {
				err = network.ServeStream(ctx, c)
			}
			plugged <- err
		}()
		orders := takeHello(t, hellos)
		dialsOut(t, ctx, m)
		if boot == 1 {
			break
		}
		if err := wire.WriteFrame(orders, wire.Order{ID: 1, Op: wire.OpReboot}); err != nil {
			t.Fatal(err)
		}
		take(t, restarts).Close()
		if err := <-plugged; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("the cable: %v", err)
		}
	}
	// Hyper-V has the kernel run this to switch off.
	ask(t, ctx, m, "POST", "/containers/create?name=off", `{"Image":"hello","Cmd":["kill","-USR2","1"],"HostConfig":{"Privileged":true,"PidMode":"host"}}`, http.StatusCreated)
	ask(t, ctx, m, "POST", "/containers/off/start", "", http.StatusNoContent)
	if err := m.Wait(ctx); err != nil {
		t.Errorf("Wait() = %v, want an orderly power-off", err)
	}
}

// dialsOut has the guest ask a registry on the host, by the network.
func dialsOut(t *testing.T, ctx context.Context, m vm.Machine) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 1)
		io.ReadFull(c, b)
		select {
		case asked <- b:
		default:
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	go ask(t, ctx, m, "POST", "/images/create?fromImage="+usernet.Host.String()+":"+port+"/x&tag=1", "", 0)
	select {
	case b := <-asked:
		if !bytes.Equal(b, []byte{22}) { // the record of a TLS handshake
			t.Errorf("the guest sent % x first, want a TLS hello", b)
		}
	case <-ctx.Done():
		t.Error("the guest never reached the host by its network")
	}
}

// ask makes one request to the engine; a status of 0 is any, and no answer too.
func ask(t *testing.T, ctx context.Context, m vm.Machine, method, path, body string, status int) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return m.Dial(ctx, wire.PortDocker)
	}}}
	r, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := c.Do(r)
	if err != nil {
		if status != 0 {
			t.Errorf("%s %s: %v", method, path, err)
		}
		return
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	if status != 0 && response.StatusCode != status {
		t.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
}
