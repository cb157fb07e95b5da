package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/tracing/detect"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	bolt "go.etcd.io/bbolt"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/local"
	"github.com/moby/buildkit/cache/remotecache/registry"

	"github.com/berthvm/berth/guest/build/git"
	"github.com/berthvm/berth/guest/build/git/call"
	"github.com/berthvm/berth/guest/build/step"
	"github.com/berthvm/berth/guest/image"
)

// Options configure New. All but Made, Builtin, HostAlias, DNS, Proxy and
// Loopback are needed.
type Options struct {
	Log      *slog.Logger
	Images   *image.Store
	Networks step.Networks

	Root     string // durable: BuildKit's databases
	RunDir   string // on a tmpfs: mounts of steps under way
	ExecPath string // of berth-exec; empty: guest/container's default
	BootID   string // changes with every boot of the machine

	DNS       []netip.Addr // for steps
	HostAlias netip.Addr   // what host-gateway stands for
	Proxy     []string     // environment that names the proxies for what is not an image: HTTP_PROXY=...

	// Loopback connects to the host's loopback, which is git's: step.Options has it.
	Loopback func(ctx context.Context, network, addr string) (net.Conn, error)

	// Builtin is closed when the images that come with the machine are in the store,
	// which a build's base may be.
	Builtin <-chan struct{}

	// Made is told of every image a build put into the store, and of the names it gave
	// it, as users write them.
	Made func(ctx context.Context, id string, names []string)
}

// Builder builds images. Its methods are safe for concurrent use. Close it before
// the image store.
type Builder struct {
	opts  Options
	steps *step.Executor

	mu     sync.Mutex // guards what follows
	open   *opened
	closed bool
}

// opened is BuildKit in operation.
type opened struct {
	control  *control.Controller
	sessions *session.Manager
	worker   *buildWorker
	server   *grpc.Server
	conns    *connListener
	uploads  *uploads
	plans    sync.Map // who wants a build's instructions, a func([]Instruction), by its classicOpt
	traces   *sdktrace.TracerProvider
	room     *room
	git      *git.Server // nil: the machine's own git is BuildKit's
	stop     context.CancelFunc
	serving  sync.WaitGroup
}

// New returns a Builder. It ends what the steps of a former process have left, and
// opens nothing.
func New(o Options) (*Builder, error) {
	steps, err := step.New(step.Options{Log: o.Log, Networks: o.Networks, RunDir: o.RunDir, ExecPath: o.ExecPath, DNS: o.DNS,
		Loopback: o.Loopback})
	if err != nil {
		return nil, fmt.Errorf("open the builder: %w", err)
	}
	nameBuildKit()
	return &Builder{opts: o, steps: steps}, nil
}

// nameBuildKit has BuildKit know its version, which is that of the library. Clients
// are shown it, registries are told, and provenance records it.
func nameBuildKit() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, dep := range info.Deps {
		if dep.Path == version.Package {
			version.Version = dep.Version
		}
	}
}

// Used says whether anything was ever built: whether there can be a cache.
func (b *Builder) Used() bool {
	_, err := os.Stat(filepath.Join(b.opts.Root, "cache.db"))
	return err == nil
}

// errClosed is what a Builder says that was closed.
var errClosed = errors.New("the builder is shutting down")

// get opens BuildKit if it is not open.
func (b *Builder) get() (*opened, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, errClosed
	case b.open != nil:
		return b.open, nil
	}
	o, err := b.start()
	if err != nil {
		return nil, fmt.Errorf("cannot open the builder in %s: %w", b.opts.Root, err)
	}
	b.open = o
	return o, nil
}

// Close ends the builds under way and closes the databases. Closing twice is fine.
func (b *Builder) Close() error {
	b.mu.Lock()
	o := b.open
	b.open, b.closed = nil, true
	b.mu.Unlock()
	if o == nil {
		return b.steps.Close()
	}
	o.stop()
	o.server.Stop()
	o.serving.Wait()
	o.room.close()
	err := errors.Join(o.control.Close(), o.closeGit(), b.steps.Close(), o.traces.Shutdown(context.Background()))
	return errors.Join(err, b.markClean())
}

func (b *Builder) path(name string) string { return filepath.Join(b.opts.Root, name) }

// start opens BuildKit's databases and puts its parts together.
func (b *Builder) start() (_ *opened, err error) {
	if err := os.MkdirAll(b.opts.Root, 0o700); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	var undo []func()
	defer func() {
		if err != nil {
			stop()
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	if err := b.distrust(ctx); err != nil {
		return nil, err
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	o := &opened{sessions: sessions, stop: stop, uploads: newUploads(), traces: traceBuilds()}
	undo = append(undo, func() { _ = o.traces.Shutdown(context.Background()) })
	if o.git, err = b.serveGit(); err != nil {
		return nil, err
	}
	undo = append(undo, func() { o.closeGit() })
	if o.worker, err = b.newWorker(ctx, o.uploads); err != nil {
		return nil, err
	}
	undo = append(undo, func() { o.worker.Close() })
	cache, err := bboltcachestorage.NewStore(b.path("cache.db"))
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { cache.Close() })
	history, err := boltutil.SafeOpen(b.path("history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { history.Close() })
	workers := &worker.Controller{}
	if err := workers.Add(o.worker); err != nil {
		return nil, err
	}
	gate, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	links := solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers))
	o.room = b.newRoom(o.worker, links)
	hosts := o.worker.RegistryHosts
	o.control, err = control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), o.buildDockerfile),
			"gateway.v0":    gate,
		},
		CacheManager: links,
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registry.ResolveCacheExporterFunc(sessions, hosts),
			"local":    local.ResolveCacheExporterFunc(sessions),
			"inline":   inline.ResolveCacheExporterFunc(),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registry.ResolveCacheImporterFunc(sessions, o.worker.ContentStore(), hosts),
			"local":    local.ResolveCacheImporterFunc(sessions),
		},
		Entitlements:   []string{"network.host"},
		TraceCollector: detect.Recorder,
		HistoryDB:      history,
		CacheStore:     cache,
		LeaseManager:   o.worker.LeaseManager(),
		ContentStore:   o.worker.ContentStore(),
		GarbageCollect: o.worker.GarbageCollect,
		GracefulStop:   ctx.Done(),
	})
	if err != nil {
		return nil, err
	}
	b.serve(o)
	return o, nil
}

// serveGit runs git in containers where the machine has a root file system for them.
func (b *Builder) serveGit() (*git.Server, error) {
	if _, err := os.Stat(git.Root); err != nil {
		return nil, nil
	}
	return git.Serve(git.Options{Log: b.opts.Log, Socket: call.Socket, Env: b.opts.Proxy, Run: b.steps.RunTool})
}

func (o *opened) closeGit() error {
	if o.git == nil {
		return nil
	}
	return o.git.Close()
}

// The file in which a Builder says that its cache is closed and on the disk, or in
// which boot it is open.
const markName = "state"

// distrusted are the databases of the cache, which are written without flushes.
var distrusted = []string{"cache.db", recordsName}

// recordsName is the database of the cache's records, each of which is a snapshot.
const recordsName = "metadata_v2.db"

// distrust drops the cache if it was open when the machine lost its power: it may lack
// any of what was written to it in that time. Then it notes that the cache is open now.
// The note is a link: it is in the filesystem's journal as a whole.
func (b *Builder) distrust(ctx context.Context) error {
	mark := b.path(markName)
	found, err := os.Readlink(mark)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if boot, open := strings.CutPrefix(found, "open-"); open && boot != b.opts.BootID {
		b.opts.Log.Info("the machine went down during builds: the build cache starts anew")
		for _, name := range distrusted {
			if err := os.Remove(b.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := b.opts.Images.Parts().Forget(ctx); err != nil {
			return err
		}
	}
	if err := b.mark("open-" + b.opts.BootID); err != nil {
		return err
	}
	// It must be known before anything is.
	dir, err := os.Open(b.opts.Root)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// markClean notes that the cache is on the disk as a whole.
func (b *Builder) markClean() error {
	if err := image.SyncFS(b.opts.Root); err != nil {
		return err
	}
	return b.mark("closed")
}

func (b *Builder) mark(state string) error {
	mark := b.path(markName)
	tmp := mark + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(state, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, mark)
}

// ServeConn serves BuildKit's API, gRPC, to one client. It returns at once; the
// connection is the Builder's.
func (b *Builder) ServeConn(conn net.Conn) error {
	o, err := b.get()
	if err != nil {
		conn.Close()
		return err
	}
	return o.conns.put(conn)
}

// DiskUsage lists the records of the build cache.
func (b *Builder) DiskUsage(ctx context.Context) ([]*controlapi.UsageRecord, error) {
	if !b.Used() {
		return nil, nil
	}
	o, err := b.get()
	if err != nil {
		return nil, err
	}
	resp, err := o.control.DiskUsage(ctx, &controlapi.DiskUsageRequest{})
	if err != nil {
		return nil, err
	}
	return resp.Record, nil
}
