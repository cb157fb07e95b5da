package build

import (
	"context"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/snapshot"
	"github.com/opencontainers/go-digest"
)

// storeName returns the image store's name of a snapshot that BuildKit names. A
// layer of an image is its chain ID in the store, and for BuildKit that with a prefix,
// which sets it apart from what BuildKits of old may have put under a chain ID
// without a check. This store never had one, and under one name in both a layer is
// unpacked once. All other names are the same.
func storeName(name string) string {
	if chain, ok := snapshot.ParseLayerSnapshotID(name); ok {
		return chain.String()
	}
	return name
}

// buildName is the reverse of storeName.
func buildName(name string) string {
	if chain, err := digest.Parse(name); err == nil {
		return snapshot.LayerSnapshotID(chain)
	}
	return name
}

// storeLayers is the store's snapshotter for BuildKit's names.
type storeLayers struct{ snapshots.Snapshotter }

// Stat implements snapshots.Snapshotter.
func (s storeLayers) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, storeName(key))
	info.Name, info.Parent = buildName(info.Name), buildName(info.Parent)
	return info, err
}

// Walk implements snapshots.Snapshotter.
func (s storeLayers) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		info.Name, info.Parent = buildName(info.Name), buildName(info.Parent)
		return fn(ctx, info)
	}, filters...)
}

// Update implements snapshots.Snapshotter.
func (s storeLayers) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info.Name = storeName(info.Name)
	info, err := s.Snapshotter.Update(ctx, info, fields...)
	info.Name, info.Parent = buildName(info.Name), buildName(info.Parent)
	return info, err
}

// Usage implements snapshots.Snapshotter.
func (s storeLayers) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(ctx, storeName(key))
}

// Mounts implements snapshots.Snapshotter.
func (s storeLayers) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(ctx, storeName(key))
}

// Prepare implements snapshots.Snapshotter.
func (s storeLayers) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(ctx, storeName(key), storeName(parent), opts...)
}

// View implements snapshots.Snapshotter.
func (s storeLayers) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(ctx, storeName(key), storeName(parent), opts...)
}

// Commit implements snapshots.Snapshotter.
func (s storeLayers) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(ctx, storeName(name), storeName(key), opts...)
}

// Remove implements snapshots.Snapshotter.
func (s storeLayers) Remove(ctx context.Context, key string) error {
	return s.Snapshotter.Remove(ctx, storeName(key))
}

// storeLeases is the store's leases for BuildKit's names of snapshots. The resources
// that it lists have the store's, which it takes as well.
type storeLeases struct{ leases.Manager }

// AddResource implements leases.Manager.
func (l storeLeases) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	r.ID = storeName(r.ID)
	return l.Manager.AddResource(ctx, lease, r)
}

// DeleteResource implements leases.Manager.
func (l storeLeases) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	r.ID = storeName(r.ID)
	return l.Manager.DeleteResource(ctx, lease, r)
}
