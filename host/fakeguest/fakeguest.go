// Package fakeguest is a guest for vm/vmfake that behaves like Berth's own, as
// far as the host can tell: it says hello, reports the phases of a boot, obeys
// orders, and serves a Docker API and an SSH server of the simplest kind. It is
// for tests of the host's side only; options make it misbehave.
package fakeguest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/vm/vmfake"
)

// Options make a guest. The zero value behaves well.
type Options struct {
	Protocol    int           // of its hello, when not wire.Protocol
	Arch        string        // of its hello, when not the host's
	HangBefore  string        // phase that never ends: "hello", "data disk", "engine"
	NoPowerOff  bool          // ignores orders and the power button
	EngineDelay time.Duration // from "the engine runs" to its socket
	Panics      bool          // breaks down when it should start the engine
	Boots       func()        // called at each boot
	Welcome     func(wire.Welcome)
	SaveErr     string        // its answer to the order to get ready to be saved
	Ordered     func(wire.Op) // called at each order
	Containers  *Containers   // that its engine has; nil for none
	// Session, when set, gets the hello stream and the hardware of a boot that is up.
	Session func(hw *vmfake.Hardware, hello net.Conn)
}

// New returns the guest.
func New(o Options) vmfake.Guest {
	return func(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
		if o.Boots != nil {
			o.Boots()
		}
		g := &guest{Options: o, hw: hw}
		exit, err := g.boot(ctx)
		if err != nil {
			fmt.Fprintln(hw.Console(), "fake guest:", err)
		}
		g.serving.Wait()
		return exit
	}
}

type guest struct {
	Options
	hw      *vmfake.Hardware
	hello   net.Conn
	writing sync.Mutex // guards writing to hello
	secret  []byte
	saving  bool // the hello may break
	serving sync.WaitGroup
}

func (g *guest) boot(ctx context.Context) (vmfake.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fmt.Fprintln(g.hw.Console(), "fake guest: booting")
	if g.HangBefore == "hello" {
		<-g.never(ctx)
		return vmfake.PowerOff, nil
	}
	welcome, err := g.sayHello(ctx)
	if err != nil {
		return vmfake.PowerOff, err
	}
	defer g.hello.Close()
	g.secret = welcome.Secret
	if g.Welcome != nil {
		g.Welcome(welcome)
	}
	if welcome.Error != "" {
		fmt.Fprintln(g.hw.Console(), "fake guest:", welcome.Error)
		<-ctx.Done()
		return vmfake.PowerOff, nil
	}
	for _, phase := range []string{"modules", "data disk", "network", "engine"} {
		g.note(wire.Note{Phase: &wire.Phase{Name: phase}})
		if g.HangBefore == phase {
			<-g.never(ctx)
			return vmfake.PowerOff, nil
		}
		if g.Panics && phase == "engine" {
			return vmfake.Fault, nil
		}
		g.note(wire.Note{Phase: &wire.Phase{Name: phase, Done: true, Took: time.Millisecond}})
	}
	g.note(wire.Note{Engine: &wire.Engine{Running: true}})
	time.Sleep(g.EngineDelay)
	if err := g.serve(ctx, welcome); err != nil {
		return vmfake.PowerOff, err
	}
	if g.Session != nil {
		g.Session(g.hw, g.hello)
	}
	return g.obey(ctx), nil
}

// never is closed when the plug is pulled or the button pressed.
func (g *guest) never(ctx context.Context) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		if g.NoPowerOff {
			<-ctx.Done()
			return
		}
		select {
		case <-ctx.Done():
		case <-g.hw.PowerButton():
		}
	}()
	return c
}

func (g *guest) sayHello(ctx context.Context) (wire.Welcome, error) {
	conn, err := g.hw.Dial(ctx, wire.PortHelloHost)
	if err != nil {
		return wire.Welcome{}, err
	}
	g.writing.Lock()
	g.hello = conn
	g.writing.Unlock()
	h := wire.Hello{Protocol: wire.Protocol, Version: "fake", Kernel: "6.12.0-fake", Arch: runtime.GOARCH, Secret: g.secret}
	if g.Protocol != 0 {
		h.Protocol = g.Protocol
	}
	if g.Arch != "" {
		h.Arch = g.Arch
	}
	if err := wire.WriteFrame(conn, h); err != nil {
		return wire.Welcome{}, err
	}
	var w wire.Welcome
	return w, wire.ReadFrame(conn, &w)
}

func (g *guest) note(n wire.Note) {
	g.writing.Lock()
	defer g.writing.Unlock()
	wire.WriteFrame(g.hello, n)
}

// orders are those that come on a hello stream, until it breaks.
func (g *guest) orders(ctx context.Context, hello net.Conn) <-chan wire.Order {
	orders := make(chan wire.Order)
	g.serving.Go(func() {
		defer close(orders)
		for {
			var o wire.Order
			if wire.ReadFrame(hello, &o) != nil {
				return
			}
			select {
			case orders <- o:
			case <-ctx.Done():
				return
			}
		}
	})
	return orders
}

// rejoin says hello to the next host, until one answers.
func (g *guest) rejoin(ctx context.Context) {
	for ctx.Err() == nil {
		welcome, err := g.sayHello(ctx)
		if err == nil && welcome.Error == "" {
			g.saving = false
			if g.Welcome != nil {
				g.Welcome(welcome)
			}
			g.note(wire.Note{Engine: &wire.Engine{Running: true}})
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// obey carries out orders until the machine ends.
func (g *guest) obey(ctx context.Context) vmfake.Exit {
	orders := g.orders(ctx, g.hello)
	button := g.hw.PowerButton()
	if g.NoPowerOff {
		button = nil
	}
	for {
		select {
		case <-ctx.Done():
			g.hello.Close()
			return vmfake.PowerOff
		case <-button:
			g.hello.Close()
			return vmfake.PowerOff
		case o, ok := <-orders:
			if !ok && g.saving {
				g.hello.Close()
				g.rejoin(ctx)
				orders = g.orders(ctx, g.hello)
				continue
			}
			if !ok {
				orders = nil
				continue
			}
			if g.Ordered != nil {
				g.Ordered(o.Op)
			}
			if g.NoPowerOff {
				continue
			}
			if o.Op == wire.OpSave && g.SaveErr != "" {
				g.note(wire.Note{Reply: &wire.Reply{ID: o.ID, Error: g.SaveErr}})
				continue
			}
			g.note(wire.Note{Reply: &wire.Reply{ID: o.ID}})
			switch o.Op {
			case wire.OpSave, wire.OpStay:
				g.saving = o.Op == wire.OpSave
			case wire.OpPowerOff:
				g.hello.Close()
				return vmfake.PowerOff
			case wire.OpReboot:
				g.hello.Close()
				return vmfake.Reboot
			}
		}
	}
}

// serve starts the engine's and the SSH server.
func (g *guest) serve(ctx context.Context, w wire.Welcome) error {
	for port, handler := range map[uint32]http.Handler{wire.PortDocker: dockerAPI(w, g.Containers, g.hw.Console()), wire.PortControl: control()} {
		l, err := g.hw.Listen(port)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler}
		g.serving.Go(func() { server.Serve(l) })
		context.AfterFunc(ctx, func() { server.Close() })
	}
	shell, err := g.hw.Listen(wire.PortSSH)
	if err != nil {
		return err
	}
	config, err := sshConfig(w.SSH)
	if err != nil {
		return err
	}
	g.serving.Go(func() {
		for {
			conn, err := shell.Accept()
			if err != nil {
				return
			}
			go serveSSH(conn, config)
		}
	})
	context.AfterFunc(ctx, func() { shell.Close() })
	return nil
}

// answer is a handler that always says the same.
func answer(v any) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		json.NewEncoder(rw).Encode(v)
	}
}

// control has been up for a minute, of which one of its two CPUs worked a quarter.
func control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/usage", answer(wire.Usage{Up: time.Minute, Busy: 15 * time.Second, CPUs: 2, MemoryTotal: 2 << 30, MemoryAvailable: 3 << 29}))
	return mux
}

// dockerAPI is the engine's. What a container is to be made of goes to the console.
func dockerAPI(w wire.Welcome, containers *Containers, console io.Writer) http.Handler {
	version := answer(map[string]any{
		"Platform": map[string]string{"Name": "Berth " + w.Machine.Version}, "Version": "fake", "ApiVersion": "1.54", "MinAPIVersion": "1.44",
		"Os": "linux", "Arch": runtime.GOARCH, "KernelVersion": "6.12.0-fake",
		"Components": []any{
			map[string]any{"Name": "Engine", "Version": "fake", "Details": map[string]string{"Os": "linux", "Arch": runtime.GOARCH, "ApiVersion": "1.54"}},
			map[string]any{"Name": "machine", "Version": w.Machine.Driver, "Details": map[string]string{"Acceleration": w.Machine.Acceleration}},
		},
	})
	list := answer([]any{})
	created := answer(map[string]any{"Id": "created", "Warnings": []string{}})
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Api-Version", "1.54")
		rw.Header().Set("Ostype", "linux")
		switch path := r.URL.Path; {
		case path == "/_ping":
			io.WriteString(rw, "OK")
		case strings.HasSuffix(path, "/containers/create"):
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(console, "fake guest: create %s\n", body)
			rw.WriteHeader(http.StatusCreated)
			created(rw, r)
		case containers.serve(rw, r):
		case strings.HasSuffix(path, "/version"):
			version(rw, r)
		case strings.HasSuffix(path, "/json"):
			list(rw, r)
		default:
			rw.WriteHeader(http.StatusNotFound)
			answer(map[string]string{"message": "the fake engine has no " + path})(rw, r)
		}
	})
}

func sshConfig(keys wire.SSH) (*ssh.ServerConfig, error) {
	authorized, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.AuthorizedKey))
	if err != nil {
		return nil, err
	}
	host, err := ssh.ParsePrivateKey([]byte(keys.HostKey))
	if err != nil {
		return nil, err
	}
	c := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(authorized.Marshal()) {
			return nil, errors.New("not the user's key")
		}
		return nil, nil
	}}
	c.AddHostKey(host)
	return c, nil
}

func serveSSH(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go serveSession(channel, requests)
	}
}

// serveSession knows the commands "exit N", "cat", "size" (of the terminal) and
// "echo ...", of which a shell takes one line.
func serveSession(c ssh.Channel, requests <-chan *ssh.Request) {
	var pty struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	for r := range requests {
		switch r.Type {
		case "pty-req":
			r.Reply(ssh.Unmarshal(r.Payload, &pty) == nil, nil)
		case "exec", "shell":
			r.Reply(true, nil)
			var command struct{ Line string }
			if r.Type == "exec" {
				ssh.Unmarshal(r.Payload, &command)
			} else {
				fmt.Fprint(c, "$ ")
				command.Line = readLine(c)
			}
			code := runCommand(c, command.Line, int(pty.Rows), int(pty.Cols))
			c.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code)}))
			c.Close()
		default:
			if r.WantReply {
				r.Reply(false, nil)
			}
		}
	}
}

func readLine(r io.Reader) string {
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil || b[0] == '\n' || b[0] == '\r' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func runCommand(c ssh.Channel, line string, rows, cols int) (code int) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "exit":
		fmt.Sscan(rest, &code)
	case "cat":
		io.Copy(c, c)
	case "size":
		fmt.Fprintf(c, "%d %d\n", rows, cols)
	case "echo":
		fmt.Fprintln(c, rest)
	default:
		fmt.Fprintf(c.Stderr(), "no such command: %s\n", verb)
		code = 127
	}
	return code
}
