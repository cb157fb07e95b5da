package build

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	snapshots "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	sourcehttp "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"github.com/berthvm/berth/guest/binfmt"
	"github.com/berthvm/berth/guest/image"
)

// hostGatewayLabel tells clients what host-gateway stands for.
const hostGatewayLabel = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"

// buildWorker is BuildKit's worker on the image store.
type buildWorker struct {
	*base.Worker
	store  *image.Store
	writer *imageexporter.ImageWriter
	made   func(ctx context.Context, id string, names []string)
}

// newWorker puts a worker together.
func (b *Builder) newWorker(ctx context.Context, up *uploads) (*buildWorker, error) {
	parts := b.opts.Images.Parts()
	content := snapshots.NewContentStore(storeContent{parts.Content}, parts.Namespace)
	applier := apply.NewFileSystemApplier(content)
	differ := walking.NewWalkingDiff(content)
	records, err := openRecords(b.path(recordsName))
	if err != nil {
		return nil, err
	}
	id, err := base.ID(b.opts.Root)
	if err != nil {
		return nil, errors.Join(err, records.Close())
	}
	opt := base.WorkerOpt{
		ID:             id,
		Root:           b.opts.Root,
		Labels:         b.labels(parts),
		Platforms:      runs(),
		GCPolicy:       gcPolicy(b.opts.Root),
		Executor:       b.steps,
		Snapshotter:    snapshots.NewSnapshotter(parts.SnapshotterName, storeLayers{parts.Snapshotter}, parts.Namespace, nil),
		ContentStore:   content,
		Applier:        applier,
		Differ:         differ,
		ImageStore:     readOnlyImages{parts.Images, parts.Namespace, b.opts.Builtin},
		RegistryHosts:  parts.Hosts,
		LeaseManager:   leaseutil.WithNamespace(storeLeases{parts.Leases}, parts.Namespace),
		GarbageCollect: parts.Collect,
		ParallelismSem: semaphore.NewWeighted(int64(max(4, 2*runtime.NumCPU()))),
		MetadataStore:  records,
		MountPoolRoot:  b.path("cachemounts"),
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, errors.Join(err, records.Close())
	}
	writer, err := imageexporter.NewImageWriter(imageexporter.WriterOpt{
		Snapshotter: opt.Snapshotter, ContentStore: content, Applier: applier, Differ: differ,
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := tellUnmade(w.CacheMgr); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	// Another source of URLs in place of the worker's own, for the way to them.
	urls, err := sourcehttp.NewSource(sourcehttp.Opt{CacheAccessor: w.CacheMgr, Transport: up.transport(parts.Transport)})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	w.SourceManager.Register(urls)
	w.HTTPSource = urls
	return &buildWorker{Worker: w, store: b.opts.Images, writer: writer, made: b.opts.Made}, nil
}

// tellUnmade has the cache tell a step whose layer was not made yet from the layers
// below it. BuildKit looks whether a record's layers are an image's by their digests
// in a row, and a layer that was not made has an empty one: a step right above an
// image counted as the image's own, so that it was neither collected nor part of
// what the cache may use.
func tellUnmade(manager cache.Manager) error {
	check := reflect.Indirect(reflect.ValueOf(manager)).FieldByName("PruneRefChecker")
	if !check.IsValid() || !check.CanSet() || check.Type() != reflect.TypeFor[cache.ExternalRefCheckerFunc]() {
		return fmt.Errorf("BuildKit's cache (%T) has no look-up of images", manager)
	}
	look := check.Interface().(cache.ExternalRefCheckerFunc)
	check.Set(reflect.ValueOf(cache.ExternalRefCheckerFunc(func() (cache.ExternalRefChecker, error) {
		c, err := look()
		return madeLayers{c}, err
	})))
	return nil
}

// madeLayers finds images by layers that were made.
type madeLayers struct{ cache.ExternalRefChecker }

// Exists implements cache.ExternalRefChecker.
func (m madeLayers) Exists(record string, layers []digest.Digest) bool {
	return !slices.Contains(layers, "") && m.ExternalRefChecker.Exists(record, layers)
}

// openRecords opens the database of the cache's records, without BuildKit's flush after
// each of its many small changes; distrust makes up for it.
func openRecords(path string) (*metadata.Store, error) {
	records, err := metadata.NewStore(path)
	if err != nil {
		return nil, err
	}
	err = records.DB().Update(func(tx *bolt.Tx) error {
		tx.DB().NoSync = true
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, records.Close())
	}
	return records, nil
}

// runs lists the platforms whose programs steps may run, the machine's own first.
func runs() []ocispec.Platform {
	own := platforms.Normalize(platforms.DefaultSpec())
	list := []ocispec.Platform{own}
	if arch := binfmt.Emulated(); arch != "" {
		list = append(list, ocispec.Platform{OS: own.OS, Architecture: arch})
	}
	return list
}

// ResolveOp implements worker.Worker. A step for another architecture has the kernel
// run its programs.
func (w *buildWorker) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sm *session.Manager, proxy worker.ProxyOpt) (solver.Op, error) {
	if op, ok := v.Sys().(*pb.Op); ok && op.GetExec() != nil {
		if err := binfmt.Need(op.GetPlatform().GetArchitecture()); err != nil {
			return nil, err
		}
	}
	return w.Worker.ResolveOp(v, s, sm, proxy)
}

// Executor implements worker.Worker: it is for the containers that frontends are or
// start, which may be for any architecture and are not told apart.
func (w *buildWorker) Executor() executor.Executor { return anyArch{w.Worker.Executor()} }

// anyArch has the kernel run the programs of all architectures that it can.
type anyArch struct{ executor.Executor }

// Run implements executor.Executor.
func (a anyArch) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resources.Recorder, error) {
	if err := binfmt.Need(binfmt.Emulated()); err != nil {
		return nil, err
	}
	return a.Executor.Run(ctx, id, root, mounts, process, started)
}

func (b *Builder) labels(parts image.Parts) map[string]string {
	hostname, _ := os.Hostname()
	l := map[string]string{
		label.Executor:            "oci",
		label.Snapshotter:         parts.SnapshotterName,
		label.Hostname:            hostname,
		label.Network:             "bridge",
		label.OCIProcessMode:      "sandbox",
		label.SELinuxEnabled:      "false",
		label.ContainerdNamespace: parts.Namespace,
	}
	if b.opts.HostAlias.IsValid() {
		l[hostGatewayLabel] = b.opts.HostAlias.String()
	}
	return l
}

// gcPolicy is BuildKit's for the size of the disk that root is on.
func gcPolicy(root string) []client.PruneInfo {
	stat, err := disk.GetDiskStat(root)
	if err != nil {
		stat = disk.DiskStat{Total: 20 << 30} // a policy for small disks is better than none
	}
	return gcPolicyFor(stat)
}

// gcPolicyFor is BuildKit's own, for its shares of a disk: what is cheap to get again
// goes after two days, and all together keeps below a share of the disk and leaves
// a share of it free. BuildKit rounds the shares up to whole gigabytes, so that on a
// small disk they are larger than it and nothing would ever go.
func gcPolicyFor(stat disk.DiskStat) []client.PruneInfo {
	share := func(percent, most int64) config.DiskSpace {
		return config.DiskSpace{Bytes: max(1, min(stat.Total*percent/100, most))} // 0 is no limit
	}
	shares := config.GCConfig{
		GCReservedSpace: share(config.DiskSpaceReservePercentage, config.DiskSpaceReserveBytes),
		GCMinFreeSpace:  share(config.DiskSpaceFreePercentage, math.MaxInt64),
		GCMaxUsedSpace:  share(config.DiskSpaceMaxPercentage, config.DiskSpaceMaxBytes),
	}
	var out []client.PruneInfo
	for _, rule := range config.DefaultGCPolicy(shares, stat) {
		out = append(out, client.PruneInfo{
			Filter:        rule.Filters,
			All:           rule.All,
			KeepDuration:  rule.KeepDuration.Duration,
			ReservedSpace: rule.ReservedSpace.AsBytes(stat),
			MaxUsedSpace:  rule.MaxUsedSpace.AsBytes(stat),
			MinFreeSpace:  rule.MinFreeSpace.AsBytes(stat),
		})
	}
	return out
}

// Exporter implements worker.Worker. What docker's clients call moby is an image
// in the engine's store.
func (w *buildWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	switch name {
	case exporterMoby, client.ExporterImage:
		return imageExporter{w, sm}, nil
	}
	return w.Worker.Exporter(name, sm)
}

// readOnlyImages is the store's table of names for BuildKit, which looks up base
// images in it. Names are given by imageExporter.
type readOnlyImages struct {
	images.Store
	namespace string
	complete  <-chan struct{} // closed when the images that come with the machine are there
}

var errReadOnly = errors.New("names are given by the exporter")

func (s readOnlyImages) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.namespace)
}

// Get implements images.Store.
func (s readOnlyImages) Get(ctx context.Context, name string) (images.Image, error) {
	if s.complete != nil {
		select {
		case <-s.complete:
		case <-ctx.Done():
			return images.Image{}, context.Cause(ctx)
		}
	}
	return s.Store.Get(s.ctx(ctx), name)
}

// List implements images.Store.
func (s readOnlyImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return s.Store.List(s.ctx(ctx), filters...)
}

// Create implements images.Store.
func (readOnlyImages) Create(context.Context, images.Image) (images.Image, error) {
	return images.Image{}, errReadOnly
}

// Update implements images.Store.
func (readOnlyImages) Update(context.Context, images.Image, ...string) (images.Image, error) {
	return images.Image{}, errReadOnly
}

// Delete implements images.Store.
func (readOnlyImages) Delete(context.Context, string, ...images.DeleteOpt) error { return errReadOnly }
