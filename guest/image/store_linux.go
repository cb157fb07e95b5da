package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/berthvm/berth/guest/image/registry"
	"github.com/berthvm/berth/guest/image/trees"
)

const (
	// format counts the changes to what the store has on the disk that an older
	// version would misread.
	format = 1

	namespace   = "berth"
	snapshotter = "overlayfs"

	// gcDelay lets removals that come in a row share one collection.
	gcDelay = 300 * time.Millisecond
	// resumeTime is how long a broken pull's blobs wait for its repetition.
	resumeTime = 24 * time.Hour
	// lockWait is how long Open waits for a former engine to let go.
	lockWait = 10 * time.Second
)

// Store is the image store. Its methods may be called concurrently. Close it.
type Store struct {
	root     string
	log      *slog.Logger
	platform ocispec.Platform
	registry *registry.Client

	bolt    *bolt.DB
	db      *metadata.DB
	content content.Store
	snap    snapshots.Snapshotter
	backend snapshots.Snapshotter // of snap, without the metadata
	layerDB *storage.MetaStore    // of backend
	trees   *trees.Trees          // of backend
	leases  leases.Manager
	images  images.Store
	applier diff.Applier
	work    *keyedMutex

	rootfs rootfsTable

	// tagging is held by what reads and then moves a name.
	tagging sync.Mutex
	// collecting is held by a garbage collection to its end: the database lets the
	// next one begin, and find nothing to do, while files are still being removed.
	collecting sync.Mutex

	mu       sync.Mutex // guards what follows; never held while a database is asked
	resolved map[digest.Digest]Image
	builtin  string // the directory of built-in images
	gcTimer  *time.Timer
	closed   bool
	running  sync.WaitGroup // collections
}

// Open opens the store in opts.Root, or makes it. It drops what an operation left
// that died with a former engine.
func Open(ctx context.Context, opts Options) (_ *Store, err error) {
	if opts.Root == "" {
		return nil, errors.New("image store: no root directory given")
	}
	s := &Store{root: opts.Root, log: opts.Log, platform: opts.Platform, work: newKeyedMutex(), resolved: map[digest.Digest]Image{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.platform.Architecture == "" {
		s.platform = platforms.DefaultSpec()
	}
	s.registry, err = registry.New(registry.Options{
		Dial: opts.Dial, Insecure: opts.InsecureRegistries, Roots: opts.Roots, Proxy: opts.Proxy,
		Stall: opts.StallTimeout, Retries: opts.Retries, UserAgent: opts.UserAgent,
	})
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.openStores(); err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot open the image store in %s: %w", s.root, err)
	}
	if err := s.recover(s.ctx(ctx)); err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot repair the image store in %s: %w", s.root, err)
	}
	return s, nil
}

func (s *Store) openStores() error {
	for _, dir := range []string{s.root, s.path("rootfs")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := s.checkFormat(); err != nil {
		return err
	}
	// containerd's libraries tell one logger for the whole process what they also
	// return, and what is no matter here, such as the lack of fs-verity.
	_ = log.SetLevel("fatal")
	blobs, err := local.NewStore(s.path("content"))
	if err != nil {
		return err
	}
	// The upperdir label tells where a layer is unpacked; Prepare builds on it.
	if s.layerDB, err = storage.NewMetaStore(s.path("layers.db")); err != nil {
		return err
	}
	s.trees = trees.New(s.layersPath(), s.path("trees"))
	s.backend, err = overlay.NewSnapshotter(s.path("snapshots"), overlay.AsynchronousRemove, overlay.WithUpperdirLabel, overlay.WithMetaStore(s.layerDB))
	if err != nil {
		return err
	}
	opts := *bolt.DefaultOptions
	opts.Timeout, opts.NoStatistics = lockWait, true
	s.bolt, err = bolt.Open(s.path("meta.db"), 0o600, &opts)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return errors.New("another engine has it open")
	}
	if err != nil {
		return err
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: s.backend})
	if err := s.db.Init(context.Background()); err != nil {
		return err
	}
	s.content = s.db.ContentStore()
	s.snap = s.db.Snapshotter(snapshotter)
	s.leases = metadata.NewLeaseManager(s.db)
	s.images = metadata.NewImageStore(s.db)
	s.applier = apply.NewFileSystemApplier(s.content)
	return nil
}

// checkFormat refuses a store that a newer Berth made, before anything is written
// to it. The format is a link's target: see rootfsTable.
func (s *Store) checkFormat() error {
	path := s.path("format")
	found, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Symlink(strconv.Itoa(format), path)
	}
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(found); err != nil || n > format {
		return fmt.Errorf("its format is %q, this version of Berth knows %d: update Berth", found, format)
	}
	return nil
}

// recover drops the leases of operations that ended with their process, and reads
// the table of containers' roots.
func (s *Store) recover(ctx context.Context) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	stale := false
	for _, l := range all {
		if !strings.HasPrefix(l.ID, operationPrefix) {
			continue
		}
		stale = true
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := s.recoverLayers(ctx); err != nil {
		return err
	}
	if err := s.recoverRootfs(all); err != nil {
		return err
	}
	if stale {
		s.collectSoon()
	}
	return nil
}

// layersPath is where backend has its snapshots' directories.
func (s *Store) layersPath() string { return s.path("snapshots", "snapshots") }

// recoverLayers removes the directories of layers that the snapshotter knows
// nothing of, and those shared by none. A process that died while it made one leaves such a directory, and
// its number, which is given out again, cannot be used. The snapshotter's own
// Cleanup does the same but writes, and so flushes, each time.
func (s *Store) recoverLayers(ctx context.Context) error {
	var known map[string]string
	err := s.layerDB.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		known, err = storage.IDMap(ctx)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	dirs, err := os.ReadDir(s.layersPath())
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if _, ok := known[d.Name()]; ok {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.layersPath(), d.Name())); err != nil {
			return err
		}
	}
	return s.trees.Sweep()
}

// Close waits for a running collection and closes the databases. Operations under
// way fail. Closing twice is fine.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.gcTimer != nil && s.gcTimer.Stop() {
		s.running.Done()
	}
	s.mu.Unlock()
	s.running.Wait()
	s.registry.Close()
	var errs []error
	if s.backend != nil {
		errs = append(errs, s.backend.Close())
	}
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	return errors.Join(errs...)
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// operationPrefix starts the names of leases that end with their process.
const operationPrefix = "operation-"

// lease protects what an operation makes until done is called. done(false) keeps
// a pull's partial blobs for resumeTime.
func (s *Store) lease(ctx context.Context) (context.Context, func(), error) {
	l, err := s.leases.Create(ctx, leases.WithRandomID(), func(l *leases.Lease) error {
		l.ID = operationPrefix + l.ID
		return nil
	})
	if err != nil {
		return ctx, nil, err
	}
	done := func() { s.release(ctx, l) }
	return leases.WithLease(ctx, l.ID), done, nil
}

// hold keeps content, and all that it names, until done is called: what is sent to a
// client or a registry may be removed meanwhile.
func (s *Store) hold(ctx context.Context, content ...digest.Digest) (done func(), err error) {
	leased, release, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	id, _ := leases.FromContext(leased)
	for _, dgst := range content {
		if err := s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: dgst.String(), Type: "content"}); err != nil {
			release()
			return nil, err
		}
	}
	return func() { release(); s.collectSoon() }, nil
}

func (s *Store) release(ctx context.Context, l leases.Lease) {
	err := s.leases.Delete(context.WithoutCancel(ctx), l)
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("cannot release a lease", "lease", l.ID, "error", err)
	}
}

// collectSoon schedules one garbage collection.
func (s *Store) collectSoon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.gcTimer != nil {
		return
	}
	s.running.Add(1)
	s.gcTimer = time.AfterFunc(gcDelay, func() {
		defer s.running.Done()
		s.mu.Lock()
		s.gcTimer = nil
		s.mu.Unlock()
		if err := s.collect(context.Background()); err != nil {
			s.log.Error("garbage collection of images failed", "error", err)
		}
	})
}

// collect removes all that nothing refers to, and waits for a collection that is
// under way.
func (s *Store) collect(ctx context.Context) error {
	ctx = s.ctx(ctx)
	if err := s.releaseUnused(ctx); err != nil {
		return err
	}
	_, err := s.garbageCollect(ctx)
	return err
}

// garbageCollect removes what the databases do not refer to.
func (s *Store) garbageCollect(ctx context.Context) (gc.Stats, error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	s.forget()
	stats, err := s.db.GarbageCollect(ctx)
	s.forget()
	if err == nil {
		err = s.trees.Sweep()
	}
	return stats, err
}

// forget drops what is known of images' contents.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.resolved)
}
