package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/dockerapi"
	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/builds"
	"github.com/berthvm/berth/guest/engine/hostpath"
	"github.com/berthvm/berth/guest/engine/images"
	"github.com/berthvm/berth/guest/engine/localkeeper"
	"github.com/berthvm/berth/guest/engine/networks"
	"github.com/berthvm/berth/guest/engine/volumes"
	"github.com/berthvm/berth/guest/hostdial"
	"github.com/berthvm/berth/guest/hostlink"
	"github.com/berthvm/berth/guest/image"
	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/network"
	"github.com/berthvm/berth/guest/publish"
	"github.com/berthvm/berth/guest/volume"
	"github.com/berthvm/berth/guest/wire"
)

// config is what the command line says.
type config struct {
	native    bool
	way       hostlink.Way
	root, run string
	welcome   string
	execPath  string
	initPath  string
	builtin   string
	log       *slog.Logger
}

func (c config) socket() string { return filepath.Join(c.run, "docker.sock") }

// parts are the engine's parts, opened.
type parts struct {
	keeper   engine.Keeper
	store    *image.Store
	networks *network.Manager
	volumes  *volume.Store
	pool     *container.Pool
	engine   *engine.Engine
	images   *images.Service
	builder  *build.Builder
	ports    *publish.Publisher // nil natively
	builtin  chan struct{}      // closed when the built-in images are loaded
}

// poolDelay lets a short container end, and its client go, before the process for
// the next one is begun.
const poolDelay = 40 * time.Millisecond

// run serves until ctx ends, then stops the containers.
func run(ctx context.Context, cfg config) error {
	w, err := readWelcome(cfg)
	if err != nil {
		return err
	}
	p, err := open(ctx, cfg, w)
	if err != nil {
		return err
	}
	defer p.close(cfg.log)
	api := dockerapi.New(dockerapi.Config{Log: cfg.log, Engine: p.engine, Images: p.images,
		Networks: networks.New(p.networks, p.engine), Volumes: volumes.New(p.volumes, p.engine), Builds: builds.New(p.builder, p.engine),
		Version: w.Machine.Version, About: about(w), Info: info(cfg, w)})
	stages := []stage{freeHeap()}
	if !cfg.native { // whose page cache is all the computer's
		stages = append(stages, freeCache(cfg.log))
	}
	servers, err := listen(cfg, w, p, api, newIdler(stages...))
	if err != nil {
		return err
	}
	ready()
	background := p.start(ctx, cfg)
	select {
	case <-ctx.Done():
	case err = <-servers.failed:
	}
	// Builds are lost anyway. Containers before the servers: their last output still
	// reaches whoever is attached.
	if berr := p.builder.Close(); berr != nil {
		cfg.log.Error("shutdown", "error", berr)
	}
	p.builder = nil // closed
	if serr := p.engine.Shutdown(context.WithoutCancel(ctx)); serr != nil {
		cfg.log.Error("shutdown", "error", serr)
	}
	servers.close()
	background.Wait()
	return err
}

// start does what the first answer need not wait for.
func (p *parts) start(ctx context.Context, cfg config) *errgroup.Group {
	g := &errgroup.Group{}
	g.Go(func() error {
		if err := p.engine.Restore(ctx); err != nil {
			cfg.log.Error("cannot restore the containers", "error", err)
		}
		if err := p.networks.Prepare(ctx); err != nil {
			cfg.log.Warn("cannot prepare the network", "error", err)
		}
		p.pool.Refill()
		return nil
	})
	g.Go(func() error {
		defer close(p.builtin)
		if err := p.store.LoadBuiltin(ctx, cfg.builtin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			cfg.log.Error("cannot load the built-in images", "error", err)
		}
		return nil
	})
	return g
}

// readWelcome reads what PID 1 was told by the host.
func readWelcome(cfg config) (wire.Welcome, error) {
	var w wire.Welcome
	data, err := os.ReadFile(cfg.welcome)
	if cfg.native && errors.Is(err, fs.ErrNotExist) {
		name, _ := os.Hostname()
		return wire.Welcome{Hostname: name, Machine: wire.Machine{Name: name, Version: "dev", Driver: "native"},
			Network: wire.Network{DNS: nameservers("/etc/resolv.conf"), MTU: 1500}}, nil
	}
	if err != nil {
		return w, fmt.Errorf("read the machine's configuration: %w", err)
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return w, fmt.Errorf("read the machine's configuration %s: %w", cfg.welcome, err)
	}
	return w, nil
}

// nameservers reads the servers of a resolv.conf.
func nameservers(name string) []string {
	data, _ := os.ReadFile(name)
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

// open opens all parts, the slow ones at once.
func open(ctx context.Context, cfg config, w wire.Welcome) (p *parts, err error) {
	p = &parts{builtin: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close(cfg.log)
		}
	}()
	if err := os.MkdirAll(cfg.run, 0o700); err != nil {
		return p, err
	}
	servers := addresses(w.Network.DNS)
	if !cfg.native {
		p.ports = publish.New(w.Secret, cfg.way.Dialer(wire.PortPublishHost), cfg.log)
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		p.store, err = image.Open(ctx, imageOptions(cfg, w))
		return err
	})
	g.Go(func() (err error) {
		p.networks, err = network.Open(ctx, network.Options{Log: cfg.log, StateDir: filepath.Join(cfg.root, "network"),
			RunDir: filepath.Join(cfg.run, "network"), NetNSDir: filepath.Join(cfg.run, "netns"), DNS: servers, MTU: w.Network.MTU, Host: address(w.Network.Gateway)})
		return err
	})
	g.Go(func() (err error) {
		if p.volumes, err = volume.Open(filepath.Join(cfg.root, "volumes")); err != nil {
			return err
		}
		p.volumes.BindFrom(func(ctx context.Context, path string) (*os.File, error) {
			return folders(cfg, w).Open(ctx, path, false)
		})
		if cfg.native {
			p.keeper = localkeeper.New()
			return nil
		}
		p.keeper, err = keeper.Dial(filepath.Join(cfg.run, "keeper.sock"))
		return err
	})
	if err := g.Wait(); err != nil {
		return p, err
	}
	p.pool, err = container.NewPool(container.PoolConfig{Parent: engine.CgroupParent, ExecPath: cfg.execPath,
		CloneParent: !cfg.native, Delay: poolDelay})
	if err != nil { // a nil pool is an empty one
		cfg.log.Warn("containers will start slower", "error", err)
	}
	host := address(w.Network.Host)
	p.engine, err = engine.Open(engine.Options{Log: cfg.log, Runtime: engine.Native{Pool: p.pool},
		Images: engine.Store{Store: p.store, Builtin: p.builtin}, Networks: p.networks,
		Volumes: p.volumes, Keeper: p.keeper, Publisher: p.publisher(), StateDir: filepath.Join(cfg.root, "engine"), RunDir: cfg.run,
		ExecPath: cfg.execPath, InitPath: initPath(cfg), CloneParent: !cfg.native, Hostname: w.Hostname,
		Socket: cfg.socket(), HostSocket: w.Machine.DockerSocket, Folders: folders(cfg, w), DNS: servers, HostAlias: host, BootID: bootID(), CDIDirs: cdiDirs})
	if err != nil {
		return p, err
	}
	loopback := hostLoopback(cfg, w).DialHost
	if cfg.native {
		loopback = (&net.Dialer{}).DialContext
	}
	p.images = images.New(p.store, p.engine, p.builtin)
	p.builder, err = build.New(build.Options{Log: cfg.log, Images: p.store, Networks: p.networks, Root: filepath.Join(cfg.root, "build"),
		RunDir: filepath.Join(cfg.run, "build"), ExecPath: cfg.execPath, BootID: bootID(), DNS: servers, HostAlias: host,
		Proxy: proxyEnv(w.Proxy), Loopback: loopback, Builtin: p.builtin, Made: p.images.Made})
	return p, err
}

// folders are the host's, where PID 1 mounts them.
func folders(cfg config, w wire.Welcome) hostpath.Map {
	if cfg.native {
		return hostpath.All()
	}
	var m hostpath.Map
	for _, s := range w.Shares {
		f := hostpath.Folder{Path: s.Path, Dir: filepath.Join(cfg.run, "share", s.Tag), Mounted: true}
		if drive, ok := hostpath.FromDrive(s.Path); ok {
			f.Path, f.Windows = drive, true
		}
		m = append(m, f)
	}
	return m
}

// hostLoopback connects to the loopback of the machine's host.
func hostLoopback(cfg config, w wire.Welcome) *hostdial.Dialer {
	return &hostdial.Dialer{Secret: w.Secret, Connect: cfg.way.Dialer(wire.PortLoopbackHost)}
}

func imageOptions(cfg config, w wire.Welcome) image.Options {
	dialer := hostLoopback(cfg, w)
	o := image.Options{Root: filepath.Join(cfg.root, "images"), Log: cfg.log, Dial: dialer.DialContext,
		UserAgent: fmt.Sprintf("berth/%s go/%s kernel/%s os/linux arch/%s", w.Machine.Version, runtime.Version(), kernel(), runtime.GOARCH)}
	if cfg.native {
		o.Dial = nil
	}
	if w.CABundle != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM([]byte(w.CABundle))
		o.Roots = roots
	}
	if w.Proxy != (wire.Proxy{}) {
		proxy := (&httpproxy.Config{HTTPProxy: w.Proxy.HTTP, HTTPSProxy: w.Proxy.HTTPS, NoProxy: w.Proxy.No}).ProxyFunc()
		o.Proxy = func(r *http.Request) (*url.URL, error) {
			if hostdial.IsLoopback(r.URL.Host) {
				return nil, nil // names that end in .localhost too
			}
			return proxy(r.URL)
		}
	}
	return o
}

// proxyEnv is p as programs take it. None leads to the loopback.
func proxyEnv(p wire.Proxy) []string {
	var env []string
	if (p.HTTP != "" || p.HTTPS != "") && p.No != "*" {
		p.No = strings.TrimPrefix(p.No+",localhost,127.0.0.1,::1", ",")
	}
	for name, value := range map[string]string{"http_proxy": p.HTTP, "https_proxy": p.HTTPS, "no_proxy": p.No} {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// address is the zero Addr if there is none.
func address(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

func addresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// publisher asks the host to listen; natively there is no host.
func (p *parts) publisher() engine.Publisher {
	if p.ports == nil {
		return nil
	}
	return publisher{p.ports}
}

type publisher struct{ *publish.Publisher }

// Open implements engine.Publisher.
func (p publisher) Open(ctx context.Context, proto, address string, target func() netip.AddrPort) (netip.AddrPort, engine.HostPort, error) {
	if strings.HasPrefix(proto, "sctp") {
		return publish.HoldSCTP(proto, address)
	}
	port, err := p.Publisher.Open(ctx, proto, address, target)
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	return port.Addr(), port, nil
}

// initPath is the program behind --init: PID 1's own, under another name. It is
// empty where there is none.
func initPath(cfg config) string {
	if _, err := os.Stat(cfg.initPath); err != nil {
		return ""
	}
	return cfg.initPath
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}

// close frees everything. The engine has been closed by Shutdown, or never ran.
func (p *parts) close(log *slog.Logger) {
	var errs []error
	if p.builder != nil {
		errs = append(errs, p.builder.Close())
	}
	if p.engine != nil {
		errs = append(errs, p.engine.Close())
	}
	errs = append(errs, p.pool.Close())
	if p.networks != nil {
		errs = append(errs, p.networks.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if c, ok := p.keeper.(interface{ Close() error }); ok && c != nil {
		errs = append(errs, c.Close())
	}
	if err := errors.Join(errs...); err != nil {
		log.Error("shutdown", "error", err)
	}
}

// ready tells PID 1 that the engine serves.
func ready() {
	fd, err := strconv.Atoi(os.Getenv("BERTH_READY_FD"))
	if err != nil || fd < 3 {
		return
	}
	os.Unsetenv("BERTH_READY_FD")
	_, _ = unix.Write(fd, []byte{1})
	unix.Close(fd)
}
