package build

import (
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/snapshot"
	"github.com/opencontainers/go-digest"

	"github.com/berthvm/berth/guest/image"
)

// TestStoreLayers: a layer is one snapshot, for the store by its chain ID and for
// BuildKit by the name it makes of that, whoever unpacked it.
func TestStoreLayers(t *testing.T) {
	store, err := image.Open(t.Context(), image.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	parts := store.Parts()
	ctx := namespaces.WithNamespace(t.Context(), parts.Namespace)
	ours, theirs := parts.Snapshotter, storeLayers{parts.Snapshotter}
	held := storeLeases{parts.Leases}
	lower, upper := digest.FromString("lower"), digest.FromString("upper")
	lease, err := held.Create(ctx, leases.WithID("build"))
	if err != nil {
		t.Fatal(err)
	}
	make := func(s snapshots.Snapshotter, name, parent string) {
		t.Helper()
		if _, err := s.Prepare(ctx, "new", parent); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(ctx, name, "new"); err != nil {
			t.Fatal(err)
		}
	}
	hold := func(id digest.Digest) leases.Resource {
		t.Helper()
		r := leases.Resource{ID: snapshot.LayerSnapshotID(id), Type: "snapshots/" + parts.SnapshotterName}
		if err := held.AddResource(ctx, lease, r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	hold(lower)
	last := hold(upper)
	make(ours, lower.String(), "")
	make(theirs, snapshot.LayerSnapshotID(upper), snapshot.LayerSnapshotID(lower))
	make(theirs, "step", snapshot.LayerSnapshotID(upper))
	if _, err := theirs.View(ctx, "view", snapshot.LayerSnapshotID(upper)); err != nil {
		t.Error(err)
	}
	if _, err := theirs.Usage(ctx, snapshot.LayerSnapshotID(lower)); err != nil {
		t.Error(err)
	}
	if _, err := theirs.Update(ctx, snapshots.Info{Name: snapshot.LayerSnapshotID(upper), Labels: map[string]string{"l": "v"}}, "labels.l"); err != nil {
		t.Error(err)
	}
	for name, parent := range map[string]string{lower.String(): "", upper.String(): lower.String(), "step": upper.String()} {
		if info, err := ours.Stat(ctx, name); err != nil || info.Parent != parent || (info.Labels["l"] == "v") != (name == upper.String()) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if info, err := theirs.Stat(ctx, snapshot.LayerSnapshotID(upper)); err != nil || info.Name != snapshot.LayerSnapshotID(upper) || info.Parent != snapshot.LayerSnapshotID(lower) {
		t.Errorf("BuildKit is told of %+v, %v", info, err)
	}
	if _, err := parts.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Stat(ctx, "step"); err == nil {
		t.Error("the collection left a snapshot that nothing holds")
	}
	if _, err := theirs.Stat(ctx, snapshot.LayerSnapshotID(upper)); err != nil {
		t.Errorf("the collection took a layer that a build holds: %v", err)
	}
	if err := held.DeleteResource(ctx, lease, last); err != nil {
		t.Fatal(err)
	}
	if _, err := parts.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Stat(ctx, upper.String()); err == nil {
		t.Error("the collection left a layer that nothing holds any longer")
	}
	if _, err := ours.Stat(ctx, lower.String()); err != nil {
		t.Errorf("the collection took a layer that a build holds: %v", err)
	}
}
