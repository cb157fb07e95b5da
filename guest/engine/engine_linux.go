package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine/hostpath"
	"github.com/berthvm/berth/guest/engine/journal"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/span"
)

// Options configure Open. Log, Runtime, Images, Networks and Keeper are needed.
type Options struct {
	Log       *slog.Logger
	Runtime   Runtime
	Images    Images
	Networks  Networks
	Volumes   Volumes // nil: containers cannot have volumes
	Keeper    Keeper
	Publisher Publisher // nil: ports are published inside the machine only

	StateDir string // durable: containers and events
	RunDir   string // on a tmpfs: mounts and processes
	ExecPath string // of berth-exec; empty: guest/container's default
	InitPath string // of the program behind --init; empty: --init is refused

	// CloneParent makes containers children of this process's parent, which must
	// be the keeper then.
	CloneParent bool
	Hostname    string       // of the machine, for --network host
	Socket      string       // of the Docker API in the machine: what a bind of docker.sock means
	HostSocket  string       // of the Docker API on the host, which means the same
	Folders     hostpath.Map // of the host: what the sources of bind mounts name
	DNS         []netip.Addr // for containers that have no embedded DNS
	HostAlias   netip.Addr   // what host-gateway stands for
	BootID      string       // changes with every boot of the machine
	CDIDirs     []string     // in the machine, with specifications of vendors' devices

	// ShutdownTimeout bounds how long Shutdown waits for containers. Default 10 s.
	ShutdownTimeout time.Duration
}

// Engine owns the containers. Make one with Open, end it with Shutdown or Close.
type Engine struct {
	opts    Options
	log     *slog.Logger
	store   *record.Store
	Journal *journal.Journal
	Spans   span.Ring

	mu     sync.Mutex // guards what follows
	byID   map[string]*Container
	byName map[string]*Container // reserved before the container is in byID
	execs  map[string]*Exec

	ctx     context.Context // ends with the engine
	cancel  context.CancelFunc
	running sync.WaitGroup // every goroutine of the engine's
	ready   chan struct{}  // closed when Restore has ended
	closing bool           // guarded by mu
}

// Open reads the containers from disk. Nothing runs yet: call Restore, which may
// take its time, once the engine can be asked. Until Restore has ended calls that
// concern containers wait.
func Open(o Options) (*Engine, error) {
	if o.ShutdownTimeout == 0 {
		o.ShutdownTimeout = 10 * time.Second
	}
	store, err := record.Open(o.StateDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.RunDir, "tasks"), 0o700); err != nil {
		return nil, fmt.Errorf("open the engine: %w", err)
	}
	j, err := journal.Open(o.StateDir)
	if err != nil {
		return nil, err
	}
	e := &Engine{opts: o, log: o.Log, store: store, Journal: j,
		byID: map[string]*Container{}, byName: map[string]*Container{}, execs: map[string]*Exec{},
		ready: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// goRun starts a goroutine that Close joins. It reports false, and starts none,
// when the engine is closing.
func (e *Engine) goRun(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.running.Go(f)
	return true
}

// Close ends the engine and leaves the containers running, as a crash would: the
// next Open finds them.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil
	}
	e.closing = true
	all := make([]*Container, 0, len(e.byID))
	for _, c := range e.byID {
		all = append(all, c)
	}
	execs := make([]*Exec, 0, len(e.execs))
	for _, x := range e.execs {
		execs = append(execs, x)
	}
	e.mu.Unlock()
	e.cancel()
	err := e.Journal.Close()
	for _, c := range all {
		c.letGo()
	}
	for _, x := range execs {
		x.letGo()
	}
	e.running.Wait()
	for _, c := range all {
		if c.log != nil {
			_ = c.log.Close()
		}
	}
	return err
}

// Shutdown stops all containers, politely and all at once, and closes the
// engine. They count as running: restart policies apply when the machine is back.
func (e *Engine) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.opts.ShutdownTimeout)
	defer cancel()
	e.mu.Lock()
	var all []*Container
	for _, c := range e.byID {
		all = append(all, c)
	}
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			c.halt()
			if err := e.stop(ctx, c, stopOptions{reason: stopShutdown}); err != nil && !errors.Is(err, ErrNotModified) {
				e.log.Warn("cannot stop container", "container", c.id, "error", err)
			}
		})
	}
	wg.Wait()
	return e.Close()
}

// find returns a container by ID, name, or a prefix of its ID that fits one only.
func (e *Engine) find(ctx context.Context, name string) (*Container, error) {
	if err := e.waitReady(ctx); err != nil {
		return nil, err
	}
	if name == "" {
		return nil, invalid("invalid name or ID supplied: %q", name)
	}
	trimmed := strings.TrimPrefix(name, "/")
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.byID[trimmed]; c != nil {
		return c, nil
	}
	if c := e.byName[trimmed]; c != nil && e.byID[c.id] == c {
		return c, nil
	}
	if c := e.linkAlias(trimmed); c != nil {
		return c, nil
	}
	var found *Container
	for id, c := range e.byID {
		if trimmed != "" && strings.HasPrefix(id, trimmed) {
			if found != nil {
				return nil, errdefs.ErrInvalidArgument.WithMessage("multiple IDs found with provided prefix: " + trimmed)
			}
			found = c
		}
	}
	if found == nil {
		return nil, errdefs.ErrNotFound.WithMessage("No such container: " + name)
	}
	return found, nil
}

func (e *Engine) waitReady(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	default:
	}
	select {
	case <-e.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// all returns the containers, newest first.
func (e *Engine) all(ctx context.Context) ([]*Container, error) {
	if err := e.waitReady(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*Container, 0, len(e.byID))
	for _, c := range e.byID {
		list = append(list, c)
	}
	sortNewestFirst(list)
	return list, nil
}

// publish records an event about anything.
func (e *Engine) publish(kind events.Type, action events.Action, id string, attrs map[string]string) {
	e.Journal.Publish(events.Message{Type: kind, Action: action, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: attrs}})
}

// ncpu is how many processors the machine has.
func ncpu() int { return runtime.NumCPU() }
