package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/fakeguest"
	"github.com/berthvm/berth/host/forward"
	"github.com/berthvm/berth/host/logfile"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vmfake"
)

// patience bounds what should come about soon.
const patience = 20 * time.Second

// bench is a daemon with a fake guest, in this process.
type bench struct {
	Options
	client *api.Client
	cancel context.CancelFunc
	ended  chan error
}

// newBench prepares a daemon; run starts it.
func newBench(t *testing.T, guest fakeguest.Options) *bench {
	t.Helper()
	home, err := machine.Locate(func(key string) string {
		if key == machine.EnvHome {
			return t.TempDir()
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := home.Machine("bench")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(m.SocketDir) })
	log, err := logfile.Open(m.DaemonLog(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log.Close()
		if t.Failed() {
			body, _ := os.ReadFile(m.DaemonLog())
			t.Logf("%s", body)
		}
	})
	files := t.TempDir()
	for _, name := range []string{"kernel", "initrd", "root"} {
		os.WriteFile(filepath.Join(files, name), []byte(name), 0o600)
	}
	config := machine.DefaultConfig()
	config.StopTimeout = machine.Duration(2 * time.Second)
	return &bench{
		Options: Options{
			Machine: m, Config: config, Version: "1.2.3", DaemonLog: log,
			Log:    slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Driver: vmfake.New(vmfake.Options{Guest: fakeguest.New(guest)}),
			Image: func(context.Context) (Image, error) {
				return Image{Version: "1.2.3", Arch: runtime.GOARCH, Kernel: filepath.Join(files, "kernel"),
					Initrd: filepath.Join(files, "initrd"), Root: filepath.Join(files, "root")}, nil
			},
			Network: func(context.Context) (Network, error) { return fakeguest.Network{}, nil },
			Listen:  forward.Listen, Forward: forward.Serve, Loopback: forward.Loopback{}.Serve, Publish: new(forward.Ports),
			StartTimeout: patience,
		},
		client: api.NewClient(m.APIAddress()),
	}
}

// run starts the daemon and returns once its API answers. The test's end ends it.
func (b *bench) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	listening, ended := make(chan struct{}), make(chan error, 1)
	b.Listening, b.ended = func() { close(listening) }, ended
	go func() {
		ended <- Run(ctx, b.Options)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		b.left(t)
	})
	select {
	case <-listening:
	case err := <-b.ended:
		t.Fatalf("the daemon ended: %v", err)
	}
}

// left proves that a daemon that has ended leaves neither sockets nor locks.
func (b *bench) left(t *testing.T) {
	t.Helper()
	filepath.WalkDir(b.Machine.SocketDir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("left behind: %s", p)
		}
		return nil
	})
	// Whoever gave up waiting for the lock may get it for a moment.
	for deadline := time.Now().Add(time.Second); machine.Locked(b.Machine.DaemonLock()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the lock is still held")
		}
	}
}

func (b *bench) follow(t *testing.T) (api.Status, []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var done []string
	s, err := b.client.Follow(ctx, func(p api.Phase) {
		if p.Done {
			done = append(done, p.Name)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, done
}

func (b *bench) up(t *testing.T) {
	t.Helper()
	b.run(t)
	if s, _ := b.follow(t); s.State != api.Running {
		t.Fatalf("it is %s: %s", s.State, s.LastError)
	}
}

// end is why the daemon ended, and the state it left.
func (b *bench) end(t *testing.T) (api.Status, error) {
	t.Helper()
	select {
	case err := <-b.ended:
		return b.Machine.LastState(), err
	case <-time.After(patience):
		t.Fatal("the daemon does not end")
		return api.Status{}, nil
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestLife(t *testing.T) {
	var welcome wire.Welcome
	b := newBench(t, fakeguest.Options{Welcome: func(w wire.Welcome) { welcome = w }})
	b.run(t)
	s, phases := b.follow(t)
	if s.State != api.Running || s.Kernel == "" || s.Acceleration == "" || len(s.Lent) == 0 || s.PID != os.Getpid() {
		t.Fatalf("%+v", s)
	}
	phases = slices.DeleteFunc(phases, func(name string) bool { return name == "image" }) // goes beside the others
	want := "disk cable hypervisor machine power on boot modules data disk network engine docker"
	if got := strings.Join(phases, " "); got != want {
		t.Errorf("phases: %s\nwant:   %s", got, want)
	}
	if len(welcome.Secret) != wire.SecretSize || welcome.Hostname != "berth-bench" || welcome.SSH.AuthorizedKey == "" ||
		welcome.Machine.Version != "1.2.3" || welcome.Time.IsZero() || welcome.Network.Gateway == "" {
		t.Errorf("the guest was told %+v", welcome)
	}
	if body := b.docker(t, "/_ping"); body != "OK" {
		t.Errorf("ping through the docker socket: %q", body)
	}
	last, err := b.client.Stop(t.Context(), patience)
	if err != nil || last.State != api.Stopped || last.LastError != "" {
		t.Errorf("stop: %+v, %v", last, err)
	}
	if s, err := b.end(t); err != nil || s.State != api.Stopped {
		t.Errorf("%v, %+v", err, s)
	}
}

func (b *bench) docker(t *testing.T, path string) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return api.Dial(ctx, b.Machine.DockerAddress())
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://docker" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

// TestConnectionsWait: a client that comes while the machine starts is served
// when it is up.
func TestConnectionsWait(t *testing.T) {
	b := newBench(t, fakeguest.Options{EngineDelay: 200 * time.Millisecond})
	b.run(t)
	for { // the socket comes after the network
		if conn, err := api.Dial(t.Context(), b.Machine.DockerAddress()); err == nil {
			conn.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	if body := b.docker(t, "/_ping"); body != "OK" {
		t.Errorf("%q", body)
	}
}

// TestSignal: the end of Run's context is an orderly stop.
func TestSignal(t *testing.T) {
	b := newBench(t, fakeguest.Options{})
	b.up(t)
	b.cancel()
	if s, err := b.end(t); err != nil || s.State != api.Stopped || s.LastError != "" {
		t.Errorf("%v, %+v", err, s)
	}
}

// TestStubbornGuest: a guest that does not switch off loses its plug, and the
// user is told.
func TestStubbornGuest(t *testing.T) {
	b := newBench(t, fakeguest.Options{NoPowerOff: true})
	b.up(t)
	s, err := b.client.Stop(t.Context(), 300*time.Millisecond)
	if err != nil || s.State != api.Stopped || !strings.Contains(s.LastError, "unplugged") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSecondDaemon(t *testing.T) {
	b := newBench(t, fakeguest.Options{})
	b.up(t)
	second := b.Options
	second.Listening = nil
	if err := Run(t.Context(), second); !errors.Is(err, ErrRunning) {
		t.Errorf("the second daemon: %v", err)
	}
	if s, err := b.client.Status(t.Context()); err != nil || s.State != api.Running {
		t.Errorf("the first: %+v, %v", s, err)
	}
}

// TestFailedStarts: each ends by itself, with one line that says why.
func TestFailedStarts(t *testing.T) {
	tests := []struct {
		name  string
		guest fakeguest.Options
		set   func(*Options)
		kind  api.Kind
		want  string
	}{
		{name: "image", kind: api.KindFailure, want: "image is corrupt", set: func(o *Options) {
			o.Image = func(context.Context) (Image, error) { return Image{}, errors.New("image is corrupt") }
		}},
		{name: "image for another arch", kind: api.KindFailure, want: "m68k", set: func(o *Options) {
			image := o.Image
			o.Image = func(ctx context.Context) (Image, error) {
				i, err := image(ctx)
				i.Arch = "m68k"
				return i, err
			}
		}},
		{name: "kernel is gone", kind: api.KindFailure, want: "nowhere", set: func(o *Options) {
			o.Image = func(context.Context) (Image, error) {
				return Image{Kernel: "/nowhere/kernel", Root: "/nowhere/root"}, nil
			}
		}},
		{name: "no hypervisor", kind: api.KindUnsupported, want: "install", set: func(o *Options) {
			o.Driver = vmfake.New(vmfake.Options{ProbeErr: errors.Join(errors.New("install QEMU"), vm.ErrUnavailable)})
		}},
		{name: "hypervisor fails", kind: api.KindFailure, want: "no memory", set: func(o *Options) {
			o.Driver = vmfake.New(vmfake.Options{StartErr: errors.New("no memory")})
		}},
		{name: "disk would shrink", kind: api.KindFailure, want: "cannot shrink", set: func(o *Options) {
			o.Machine.PrepareDisk(8<<30, nil)
			o.Config.Disk = 4 << 30
		}},
		{name: "no network", kind: api.KindFailure, want: "no network", set: func(o *Options) {
			o.Network = func(context.Context) (Network, error) { return nil, errors.New("no network") }
		}},
		{name: "protocol", kind: api.KindFailure, want: "protocol 99", guest: fakeguest.Options{Protocol: 99}},
		{name: "guest of another arch", kind: api.KindFailure, want: "m68k", guest: fakeguest.Options{Arch: "m68k"}},
		{name: "no hello", kind: api.KindTimeout, want: `in phase "boot"`, guest: fakeguest.Options{HangBefore: "hello"}, set: short},
		{name: "hangs", kind: api.KindTimeout, want: `in phase "data disk"`, guest: fakeguest.Options{HangBefore: "data disk"}, set: short},
		{name: "engine hangs", kind: api.KindTimeout, want: `in phase "docker"`, guest: fakeguest.Options{EngineDelay: time.Second}, set: short},
		{name: "panic", kind: api.KindFailure, want: "ended", guest: fakeguest.Options{Panics: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, tt.guest)
			if tt.set != nil {
				tt.set(&b.Options)
			}
			b.run(t)
			s, err := b.end(t)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") && tt.name != "no hypervisor" {
				t.Errorf("error %v, want %q in a line", err, tt.want)
			}
			if s.State != api.Failed || s.LastErrorKind != tt.kind || s.LastError != err.Error() {
				t.Errorf("state %+v, want kind %s", s, tt.kind)
			}
		})
	}
}

func short(o *Options) { o.StartTimeout = 300 * time.Millisecond }

// TestCancel: a start is given up when only one follows it.
func TestCancel(t *testing.T) {
	b := newBench(t, fakeguest.Options{HangBefore: "engine"})
	b.run(t)
	followers, joined := make(chan api.Status, 2), make(chan struct{}, 2)
	ctx, leave := context.WithCancel(t.Context())
	for _, ctx := range []context.Context{t.Context(), ctx} {
		go func() {
			var once sync.Once
			s, _ := b.client.Follow(ctx, func(api.Phase) { once.Do(func() { joined <- struct{}{} }) })
			followers <- s
		}()
	}
	<-joined
	<-joined
	if err := b.client.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := b.client.Status(t.Context()); err != nil || s.State != api.Starting {
		t.Fatalf("canceled although another follows: %+v, %v", s, err)
	}
	leave()
	<-followers
	for i := 0; i < 1000; i++ { // until the daemon has noticed that one has left
		b.client.Cancel(t.Context())
		if s, err := b.client.Status(t.Context()); err != nil || s.State != api.Starting {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if s := <-followers; s.State != api.Failed || s.LastErrorKind != api.KindCanceled {
		t.Errorf("%+v", s)
	}
	b.end(t)
}

// TestGuestDies: the daemon ends and its state says why.
func TestGuestDies(t *testing.T) {
	die := make(chan struct{})
	b := newBench(t, fakeguest.Options{})
	b.Driver = vmfake.New(vmfake.Options{Guest: func(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
		result := make(chan vmfake.Exit, 1)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() { result <- fakeguest.New(fakeguest.Options{})(ctx, hw) }()
		select {
		case e := <-result:
			return e
		case <-die:
			cancel()
			<-result
			return vmfake.Fault
		}
	}})
	b.up(t)
	close(die)
	if s, err := b.end(t); !errors.Is(err, vmfake.ErrFault) || s.State != api.Failed || s.LastError == "" {
		t.Errorf("%v, %+v", err, s)
	}
}

// TestReboot: a guest that restarts itself is led through its boot again, with a
// new secret.
func TestReboot(t *testing.T) {
	var boots atomic.Int32
	secrets := make(chan []byte, 2)
	var kick atomic.Pointer[chan struct{}]
	c := make(chan struct{})
	kick.Store(&c)
	b := newBench(t, fakeguest.Options{})
	guest := fakeguest.New(fakeguest.Options{
		Boots: func() { boots.Add(1) }, Welcome: func(w wire.Welcome) { secrets <- w.Secret },
	})
	b.Driver = vmfake.New(vmfake.Options{Guest: func(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
		if boots.Load() > 0 {
			return guest(ctx, hw)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			<-c
			cancel()
		}()
		guest(ctx, hw)
		return vmfake.Reboot
	}})
	b.up(t)
	close(c)
	for boots.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	if s, _ := b.follow(t); s.State != api.Running {
		t.Errorf("after the reboot: %+v", s)
	}
	if first, second := <-secrets, <-secrets; bytes.Equal(first, second) {
		t.Error("the secret is the same after a reboot")
	}
	if body := b.docker(t, "/_ping"); body != "OK" {
		t.Errorf("ping after the reboot: %q", body)
	}
}

// TestSecondHello: nobody but the first may say hello, and rubbish is ignored.
func TestSecondHello(t *testing.T) {
	refused := make(chan error, 2)
	b := newBench(t, fakeguest.Options{Session: func(hw *vmfake.Hardware, _ net.Conn) {
		for _, first := range []func(io.Writer){
			func(w io.Writer) { wire.WriteFrame(w, wire.Hello{Protocol: wire.Protocol, Arch: runtime.GOARCH}) },
			func(w io.Writer) { binary.Write(w, binary.BigEndian, uint32(1<<31)) },
		} {
			conn, err := hw.Dial(context.Background(), wire.PortHelloHost)
			if err != nil {
				refused <- err
				return
			}
			first(conn)
			var w wire.Welcome
			refused <- wire.ReadFrame(conn, &w)
			conn.Close()
		}
	}})
	b.up(t)
	for range 2 {
		if err := <-refused; err == nil {
			t.Error("a second hello was welcomed")
		}
	}
	if s, err := b.client.Status(t.Context()); err != nil || s.State != api.Running {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestLogs(t *testing.T) {
	b := newBench(t, fakeguest.Options{})
	b.up(t)
	for source, want := range map[string]string{api.LogConsole: "fake guest: booting", api.LogDaemon: "machine is running"} {
		var out bytes.Buffer
		if err := b.client.Logs(t.Context(), api.LogQuery{Source: source, Tail: -1}, &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %q, %v", source, &out, err)
		}
	}
	followed := make(chan error, 1)
	go func() {
		followed <- b.client.Logs(context.Background(), api.LogQuery{Source: api.LogConsole, Tail: 1, Follow: true}, io.Discard)
	}()
	time.Sleep(10 * time.Millisecond)
	if _, err := b.client.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-followed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("whoever follows the log is not let go")
	}
}

func TestGuestProxy(t *testing.T) {
	const alias = "192.168.127.254"
	tests := []struct {
		config, host machine.Proxy
		want         wire.Proxy
	}{
		{machine.Proxy{}, machine.Proxy{}, wire.Proxy{}},
		{machine.Proxy{}, machine.Proxy{HTTP: "http://127.0.0.1:3128", HTTPS: "http://u:p@localhost:8080/x", No: "a,b"},
			wire.Proxy{HTTP: "http://" + alias + ":3128", HTTPS: "http://u:p@" + alias + ":8080/x", No: "a,b"}},
		{machine.Proxy{HTTP: "http://proxy:1"}, machine.Proxy{HTTPS: "http://other:1"}, wire.Proxy{HTTP: "http://proxy:1"}},
		{machine.Proxy{HTTP: "http://[::1]"}, machine.Proxy{}, wire.Proxy{HTTP: "http://" + alias}},
		{machine.Proxy{HTTP: "://"}, machine.Proxy{}, wire.Proxy{HTTP: "://"}},
	}
	for _, tt := range tests {
		if got := guestProxy(tt.config, tt.host, alias); got != tt.want {
			t.Errorf("%+v and %+v: %+v, want %+v", tt.config, tt.host, got, tt.want)
		}
	}
}
