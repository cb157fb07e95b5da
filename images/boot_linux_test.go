package images_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// patience bounds each step of a guest that TCG runs beside other work.
const patience = 5 * time.Minute

// TestBoot takes one data disk through the machine's life: first boot, order to
// restart, order to power off, power cut, growth, a host that refuses, and a
// host that dies.
func TestBoot(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" {
		t.Skip("boots virtual machines: set BERTH_VM=1")
	}
	image := buildImage(t)
	disk := filepath.Join(t.TempDir(), "data")
	grow(t, disk, 1<<30)

	t.Run("first boot, restart, power-off", func(t *testing.T) {
		g := boot(t, image, disk)
		g.await("engine: start 1")
		g.await("engine: start 2") // it failed, and was started again
		g.await("engine: ready")
		g.order(wire.OpTime)
		g.order(wire.OpReboot)
		g.welcome()
		g.await("engine: stopped")
		g.await("engine: start 3")
		g.await("engine: ready")
		g.awaitPhase("engine")
		t.Logf("phases of a boot:\n%s", g.phases())
		g.order(wire.OpPowerOff)
		g.ended(nil)
		g.passed()
		if text := g.console.String(); strings.Contains(text, "checking the data disk") {
			t.Error("an orderly restart left the data disk dirty")
		}
	})
	t.Run("power cut, then growth", func(t *testing.T) {
		g := boot(t, image, disk)
		g.await("engine: start 4")
		g.await("engine: ready")
		g.machine.Close()

		grow(t, disk, 2<<30)
		g = boot(t, image, disk)
		g.await("checking the data disk")
		g.await("engine: start 5")
		g.await("engine: data disk of 19") // 1.9 GB and something
		g.await("engine: ready")
		g.awaitPhase("core modules")                  // the button's is among them
		if err := g.machine.Stop(g.ctx); err != nil { // the power button
			t.Fatal(err)
		}
		g.ended(nil)
		g.passed()
	})
	t.Run("host refuses", func(t *testing.T) {
		g := start(t, image, disk)
		conn := g.accept()
		if err := wire.WriteFrame(conn, wire.Welcome{Protocol: wire.Protocol, Error: "no such guest today"}); err != nil {
			t.Fatal(err)
		}
		g.await("no such guest today")
		g.ended(nil)
	})
	t.Run("host dies", func(t *testing.T) {
		g := boot(t, image, disk)
		g.await("engine: ready")
		g.stream.Close()
		g.await("engine: stopped")
		g.ended(nil)
	})
}

// BenchmarkBoot boots the image in bin/image, with its real engine, from QEMU's
// start until the engine serves.
func BenchmarkBoot(b *testing.B) {
	if os.Getenv("BERTH_VM") == "" {
		b.Skip("boots virtual machines: set BERTH_VM=1")
	}
	image, err := images.Open("../bin/image")
	if err != nil {
		b.Fatal(err)
	}
	disk := filepath.Join(b.TempDir(), "data")
	grow(b, disk, 64<<30)
	var cpu time.Duration // of QEMU, which a busy host does not stretch
	round := func() string {
		g := start(b, image, disk)
		g.version = image.Manifest.Version
		g.welcome()
		g.awaitPhase("engine")
		b.StopTimer()
		defer b.StartTimer()
		cpu += cpuOfChildren(b)
		phases := g.phases()
		g.order(wire.OpPowerOff)
		g.ended(nil)
		g.machine.Close() // frees the disk
		return phases
	}
	round() // formats the disk
	cpu = 0
	b.ResetTimer()
	phases := ""
	for b.Loop() {
		phases = round()
	}
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.Logf("phases of the last boot:\n%s", phases)
}

// cpuOfChildren is the CPU time that this process' running children have used.
func cpuOfChildren(tb testing.TB) time.Duration {
	tb.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		tb.Fatal(err)
	}
	var ticks int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		for _, field := range fields[11:13] {
			n, err := strconv.Atoi(field)
			if err != nil {
				tb.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func TestForeignDataDisk(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" {
		t.Skip("boots virtual machines: set BERTH_VM=1")
	}
	image := buildImage(t)
	disk := filepath.Join(t.TempDir(), "data")
	grow(t, disk, 64<<20)
	before := []byte("somebody's data")
	file, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file.WriteAt(before, 4096)
	file.Close()
	g := boot(t, image, disk)
	g.await("holds something that is not ext4")
	g.ended(nil)
	if after, err := os.ReadFile(disk); err != nil || !bytes.HasPrefix(after[4096:], before) || len(bytes.Trim(after[8192:], "\x00")) != 0 {
		t.Errorf("the disk was written to (%v)", err)
	}
}

// TestReproducible builds the image a second time, elsewhere.
func TestReproducible(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" {
		t.Skip("builds the guest image: set BERTH_VM=1")
	}
	first := buildImage(t)
	dir := t.TempDir()
	cmd := exec.Command("go", "run", "./build", "-o", filepath.Join(dir, "image"), "-engine", filepath.Join(filepath.Dir(first.Dir), "engine"), "-version", "test")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TZ=Asia/Tokyo")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{images.ManifestName, "vmlinux", "bzImage", "initramfs", "root.erofs"} {
		a, errA := os.ReadFile(filepath.Join(first.Dir, name))
		b, errB := os.ReadFile(filepath.Join(dir, "image", name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds (%v, %v)", name, errA, errB)
		}
	}
}

var built struct {
	sync.Once
	image *images.Image
	err   error
}

// buildImage makes the image with a stand-in for the engine, once.
func buildImage(t testing.TB) *images.Image {
	t.Helper()
	built.Do(func() {
		dir, err := os.MkdirTemp("", "berth-image-")
		if err != nil {
			built.err = err
			return
		}
		engine := filepath.Join(dir, "engine")
		for _, argv := range [][]string{
			{"go", "build", "-o", engine, "./testdata/engine"},
			{"go", "run", "./build", "-o", filepath.Join(dir, "image"), "-engine", engine, "-version", "test"},
		} {
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
				return
			}
		}
		built.image, built.err = images.Open(filepath.Join(dir, "image"))
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.image
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.image != nil {
		os.RemoveAll(filepath.Dir(built.image.Dir))
	}
	os.Exit(code)
}

func grow(t testing.TB, path string, size int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// guest is a running machine and the host's end of it.
type guest struct {
	t        testing.TB
	version  string // of its programs
	ctx      context.Context
	machine  vm.Machine
	listener net.Listener
	console  *console
	stream   net.Conn
	orders   uint64

	mu    sync.Mutex // guards what follows
	notes []wire.Note
}

// start boots a machine, with changes to what is usual, and says nothing to it.
func start(t testing.TB, image *images.Image, disk string, changes ...func(*vm.Config)) *guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "bb-") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guest{t: t, version: "test", ctx: ctx, console: &console{}}
	cfg := vm.Config{
		Name: "boot", CPUs: 1, MemoryMiB: 512,
		Kernel: image.Kernel, Initrd: image.Initrd, Cmdline: image.Cmdline,
		Disks: []vm.Disk{
			{Path: image.Root, ReadOnly: true, Serial: images.RootSerial},
			{Path: disk, Serial: images.DataSerial},
		},
		Network: cable{},
		Console: g.console,
	}
	for _, change := range changes {
		change(&cfg)
	}
	g.machine, err = qemu.New(qemu.Options{Arch: image.Manifest.Arch}).New(ctx, cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.machine.Close() })
	if g.listener, err = g.machine.Listen(wire.PortHelloHost); err != nil {
		t.Fatal(err)
	}
	if err := g.machine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return g
}

// boot boots a machine and welcomes it.
func boot(t testing.TB, image *images.Image, disk string) *guest {
	g := start(t, image, disk)
	g.welcome()
	return g
}

// accept takes the hello.
func (g *guest) accept() net.Conn {
	g.t.Helper()
	stop := time.AfterFunc(patience, func() { g.listener.Close() })
	defer stop.Stop()
	conn, err := g.listener.Accept()
	if err != nil {
		g.t.Fatalf("no hello: %v\n%s", err, g.console)
	}
	var hello wire.Hello
	if err := wire.ReadFrame(conn, &hello); err != nil {
		g.t.Fatalf("hello: %v\n%s", err, g.console)
	}
	if hello.Protocol != wire.Protocol || hello.Version != g.version || hello.Kernel == "" || hello.Arch == "" {
		g.t.Errorf("hello: %+v", hello)
	}
	return conn
}

func (g *guest) welcome() {
	g.t.Helper()
	g.stream = g.accept()
	g.mu.Lock()
	g.notes = nil
	g.mu.Unlock()
	err := wire.WriteFrame(g.stream, wire.Welcome{
		Protocol: wire.Protocol, Secret: make([]byte, wire.SecretSize), Time: time.Now(), Hostname: "boot-test",
		Network:  wire.Network{Address: "192.168.127.2/24", Gateway: "192.168.127.1", MTU: 1500, DNS: []string{"192.168.127.1"}, Host: "192.168.127.254"},
		CABundle: "extra certificate",
	})
	if err != nil {
		g.t.Fatal(err)
	}
	go func(stream net.Conn) {
		for {
			var n wire.Note
			if err := wire.ReadFrame(stream, &n); err != nil {
				return
			}
			g.mu.Lock()
			g.notes = append(g.notes, n)
			g.mu.Unlock()
		}
	}(g.stream)
}

// order sends an order and waits for its reply.
func (g *guest) order(op wire.Op) {
	g.t.Helper()
	g.orders++
	if err := wire.WriteFrame(g.stream, wire.Order{ID: g.orders, Op: op, Time: time.Now()}); err != nil {
		g.t.Fatal(err)
	}
	id := g.orders
	g.poll("the reply to "+string(op), func() bool {
		for _, n := range g.seen() {
			if n.Reply != nil && n.Reply.ID == id {
				if n.Reply.Error != "" {
					g.t.Errorf("%s: %s", op, n.Reply.Error)
				}
				return true
			}
		}
		return false
	})
}

func (g *guest) seen() []wire.Note {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]wire.Note(nil), g.notes...)
}

func (g *guest) poll(what string, f func() bool) {
	g.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%s never came; console:\n%s", what, g.console)
		}
	}
}

// await waits for text on the console, and forgets all up to it.
func (g *guest) await(text string) {
	g.t.Helper()
	g.poll(fmt.Sprintf("%q", text), func() bool { return g.console.skip(text) })
}

func (g *guest) awaitPhase(name string) {
	g.t.Helper()
	g.poll("the end of the phase "+name, func() bool {
		for _, n := range g.seen() {
			if n.Phase != nil && n.Phase.Done && n.Phase.Name == name {
				return true
			}
		}
		return false
	})
}

// phases lists the boot's phases, and checks that each that began has ended well.
func (g *guest) phases() string {
	var text strings.Builder
	open := map[string]bool{}
	for _, n := range g.seen() {
		p := n.Phase
		if p == nil {
			continue
		}
		open[p.Name] = !p.Done
		if p.Error != "" {
			g.t.Errorf("phase %s failed: %s", p.Name, p.Error)
		}
		if p.Done {
			fmt.Fprintf(&text, "%-14s from %5d ms, took %5d ms\n", p.Name, p.Since.Milliseconds(), p.Took.Milliseconds())
		}
	}
	for _, name := range []string{"kernel", "modules", "hello", "root", "mounts", "data disk", "network", "engine"} {
		if running, ok := open[name]; !ok || running {
			g.t.Errorf("phase %s: begun %v, running %v", name, ok, running)
		}
	}
	return text.String()
}

// ended waits for the machine to end, for the reason want.
func (g *guest) ended(want error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.machine.Wait(ctx); err != want {
		g.t.Fatalf("the machine ended with %v, want %v; console:\n%s", err, want, g.console)
	}
}

// passed fails the test for what the engine found wrong.
func (g *guest) passed() {
	g.t.Helper()
	if text := g.console.all(); strings.Contains(text, "FAIL") {
		g.t.Errorf("console:\n%s", text)
	}
}

// console collects the guest's console.
type console struct {
	mu   sync.Mutex // guards what follows
	text []byte
	seen int
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	return len(p), nil
}

func (c *console) skip(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := bytes.Index(c.text[c.seen:], []byte(text))
	if i < 0 {
		return false
	}
	c.seen += i + len(text)
	return true
}

func (c *console) all() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

func (c *console) String() string { return c.all() }

// cable is a network nobody else is on.
type cable struct{}

func (cable) MAC() net.HardwareAddr { return net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee} }

func (cable) ServeStream(ctx context.Context, conn net.Conn) error { return drain(ctx, conn) }

func (cable) ServeDatagram(ctx context.Context, conn net.Conn) error { return drain(ctx, conn) }

func drain(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			return err
		}
	}
}
