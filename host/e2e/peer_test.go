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
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"

	"github.com/berthvm/berth/host/forward"
	"github.com/berthvm/berth/host/usernet"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// The ports of scripts/peer/relay.
const (
	peerDockerPort = 11
	peerShellPort  = 12
)

// peerVM is Debian's docker.io engine in a machine like Berth's: the same driver,
// kernel, CPUs, memory and accelerator; see scripts/peer. Its network is the
// stock user-mode stack of gvisor-tap-vsock. The host's loopback is
// 192.168.127.254 in it, where registries may speak plain HTTP.
type peerVM struct {
	dir     string // a short path
	machine vm.Machine
	network *virtualnetwork.VirtualNetwork
	cancel  context.CancelFunc // ends the goroutines that serve the machine
	console bytes.Buffer
}

// peer builds the machine's files if need be, boots it with as many CPUs and as
// much memory as h's running machine has, and waits for the engine. The caller
// closes it.
func peer(t testing.TB, h *home) *peerVM {
	t.Helper()
	needVM(t)
	build := exec.Command("go", "run", "./scripts/peer")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("scripts/peer: %v\n%s", err, out)
	}
	dir, err := os.MkdirTemp("", "peer-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &peerVM{dir: dir, cancel: cancel}
	if err := p.boot(ctx, h.status(t)); err != nil {
		p.close()
		t.Fatalf("the peer does not come up: %v\n%s", err, tail(p.console.String(), 40))
	}
	return p
}

func (p *peerVM) boot(ctx context.Context, like status) error {
	img, err := images.Open(filepath.Join(root, "bin", "image"))
	if err != nil {
		return err
	}
	disk, err := emptyDisk(filepath.Join(p.dir, "data"))
	if err != nil {
		return err
	}
	p.network, err = virtualnetwork.New(&types.Configuration{
		MTU: 1500, Subnet: usernet.Subnet.String(), GatewayIP: usernet.Gateway.String(), GatewayMacAddress: "5a:94:ef:e4:0c:dd",
		NAT: map[string]string{usernet.Host.String(): "127.0.0.1"}, GatewayVirtualIPs: []string{usernet.Host.String()},
	})
	if err != nil {
		return err
	}
	made := filepath.Join(root, ".cache", "peer")
	cfg := vm.Config{
		Name: "peer", CPUs: like.CPUs, MemoryMiB: like.MemoryMiB, Cmdline: img.Cmdline,
		Kernel: filepath.Join(made, "kernel"), Initrd: filepath.Join(made, "initramfs"),
		Disks:   []vm.Disk{{Path: filepath.Join(made, "root.erofs"), ReadOnly: true}, {Path: disk}},
		Network: peerCable{p.network}, Console: &p.console,
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.machine, err = qemu.New(qemu.Options{Acceleration: strings.ToLower(like.Acceleration)}).New(bounded, cfg, p.dir); err != nil {
		return err
	}
	if err := p.machine.Start(bounded); err != nil {
		return err
	}
	l, err := forward.Listen(p.socket())
	if err != nil {
		return err
	}
	go forward.Serve(ctx, l, func(ctx context.Context) (net.Conn, error) { return p.machine.Dial(ctx, peerDockerPort) })
	for bounded.Err() == nil {
		if p.docker().exec("version").code == 0 {
			return nil
		}
		time.Sleep(500 * time.Millisecond)
	}
	return errors.New("docker version never answers")
}

// emptyDisk makes a sparse ext4 as large as a new machine's data disk, with the
// lazy settings that Berth gives its own.
func emptyDisk(path string) (string, error) {
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if err := file.Truncate(64 << 30); err != nil {
		return "", err
	}
	mkfs := exec.Command("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", path)
	if out, err := mkfs.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return path, nil
}

func (p *peerVM) socket() string { return filepath.Join(p.dir, "docker.sock") }

// docker is the stock client, on the peer's engine.
func (p *peerVM) docker() cli {
	env := []string{"HOME=" + p.dir, "DOCKER_CONFIG=" + filepath.Join(p.dir, "config"), "PATH=" + os.Getenv("PATH")}
	return cli{name: "peer's docker", bin: filepath.Join(root, "bin", "tools", "docker"), env: env, pre: []string{"--host", "unix://" + p.socket()}}
}

// load copies images from h's machine to the peer, under the same names.
func (p *peerVM) load(t testing.TB, h *home, names ...string) {
	t.Helper()
	file := filepath.Join(p.dir, "image.tar")
	h.berth().ok(t, append([]string{"save", "-o", file}, names...)...)
	p.docker().ok(t, "load", "-i", file)
	os.Remove(file)
}

// shell runs a script in the peer machine and returns what it prints.
func (p *peerVM) shell(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := p.machine.Dial(ctx, peerShellPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { conn.Close() })
	io.WriteString(conn, script)
	conn.(interface{ CloseWrite() error }).CloseWrite()
	out, err := io.ReadAll(conn)
	text, ok := strings.CutSuffix(string(out), "\nexit 0\n")
	if err != nil || !ok {
		t.Fatalf("in the peer: %s\n%s\n%v", script, out, err)
	}
	return strings.TrimSpace(text)
}

// forward opens a port of the host's loopback that leads to a port of the peer
// machine through the user-mode stack, and returns its address.
func (p *peerVM) forward(t testing.TB, port int) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	local := free.Addr().String()
	free.Close()
	body := fmt.Sprintf(`{"local":%q,"remote":"%s:%d","protocol":"tcp"}`, local, usernet.Guest, port)
	answer := httptest.NewRecorder()
	p.network.ServicesMux().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/services/forwarder/expose", strings.NewReader(body)))
	if answer.Code != http.StatusOK {
		t.Fatalf("cannot forward %s: %s", body, answer.Body)
	}
	return local
}

// close ends the machine and removes its files.
func (p *peerVM) close() {
	if p.machine != nil {
		p.machine.Close()
	}
	p.cancel()
	os.RemoveAll(p.dir)
}

// peerCable plugs the stock stack into the machine.
type peerCable struct{ *virtualnetwork.VirtualNetwork }

func (peerCable) MAC() net.HardwareAddr {
	mac, err := net.ParseMAC(usernet.GuestMAC)
	if err != nil {
		panic(err) // a constant
	}
	return mac
}

func (c peerCable) ServeStream(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	return c.AcceptQemu(ctx, conn)
}

func (c peerCable) ServeDatagram(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	return c.AcceptVfkit(ctx, conn)
}

// TestPeer holds what the comparisons rest on: the peer has Berth's CPUs, memory
// and kernel, runs containers, and is reached by its ports.
func TestPeer(t *testing.T) {
	needFull(t)
	h := machine(t)
	p := peer(t, h)
	defer p.close()
	p.load(t, h, "hello")
	c := p.docker()
	if got := c.ok(t, "run", "--rm", "hello", "echo", "from dockerd"); got != "from dockerd" {
		t.Errorf("run: %q", got)
	}
	const facts = "{{.NCPU}} {{.KernelVersion}} {{.OSType}}"
	if ours, theirs := h.docker().ok(t, "info", "--format", facts), c.ok(t, "info", "--format", facts); ours != theirs {
		t.Errorf("Berth: %s; the peer: %s", ours, theirs)
	}
	const memory = "grep MemTotal /proc/meminfo"
	if ours, theirs := h.berth().ok(t, "ssh", "--", memory), p.shell(t, memory); ours != theirs {
		t.Errorf("Berth: %s; the peer: %s", ours, theirs)
	}
	c.ok(t, "run", "-d", "--name", "web", "-p", "8080:80", "hello", "sh", "-c", "echo served >/index.html && exec httpd -f -h /")
	address := p.forward(t, 8080)
	eventually(t, "the published port answers", func() bool {
		resp, err := http.Get("http://" + address)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return string(body) == "served\n"
	})
	c.ok(t, "rm", "-f", "web")
}
