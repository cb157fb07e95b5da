package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
)

// TestSharedFiles: a builder's snapshot and a layer with its files are there once,
// stay while either is wanted, also for a store that is opened again, and are no
// image's as long as none has them.
func TestSharedFiles(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
	ctx := s.ctx(t.Context())
	usage := func() DiskUsage {
		t.Helper()
		du, err := s.DiskUsage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return du
	}
	settle(t, s)
	before := usage()
	if before.Images != before.Content+before.Layers || before.Images != img.Size() {
		t.Errorf("one image of %d bytes, and the usage is %+v", img.Size(), before)
	}
	const size = 1 << 20
	holdSnapshot(t, s, "builder", "step")
	holdSnapshot(t, s, "image", "layer")
	parts := s.Parts()
	top := func(key string) string {
		t.Helper()
		m, err := parts.Snapshotter.Prepare(ctx, key, "")
		if err != nil {
			t.Fatal(err)
		}
		return m[0].Source
	}
	commit := func(name, key string) {
		t.Helper()
		if err := parts.Snapshotter.Commit(ctx, name, key); err != nil {
			t.Fatal(err)
		}
	}
	from := top("new step")
	if err := os.WriteFile(filepath.Join(from, "f"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	commit("step", "new step")
	to := top("new layer")
	if err := parts.Share(from, to); err != nil {
		t.Fatal(err)
	}
	commit("layer", "new layer")
	if du := usage(); du.Layers-before.Layers < size || du.Layers-before.Layers >= 2*size || du.Images != before.Images {
		t.Errorf("before: %+v; with a snapshot and a layer that share a file of %d bytes: %+v", before, size, du)
	}
	if err := parts.Share(t.TempDir(), to); err == nil {
		t.Error("what is no layer was shared")
	}

	s.release(ctx, leases.Lease{ID: "builder"})
	settle(t, s)
	if _, err := os.Stat(from); !os.IsNotExist(err) {
		t.Errorf("the builder's snapshot is there: %v", err)
	}
	s.Close()
	s = reopen(t, s.root)
	if st, err := os.Stat(filepath.Join(to, "f")); err != nil || st.Size() != size {
		t.Errorf("the layer lost its file with the builder's snapshot: %v", err)
	}
	s.release(ctx, leases.Lease{ID: "image"})
	settle(t, s)
	if left, err := os.ReadDir(s.path("trees")); err != nil || len(left) != 0 {
		t.Errorf("left of the shared files: %v, %v", left, err)
	}
	if du := usage(); du != before {
		t.Errorf("before: %+v, after: %+v", before, du)
	}
}

// holdSnapshot keeps a snapshot by a lease.
func holdSnapshot(t *testing.T, s *Store, lease, name string) {
	t.Helper()
	ctx := s.ctx(context.Background())
	l, err := s.leases.Create(ctx, leases.WithID(lease))
	if err == nil {
		err = s.leases.AddResource(ctx, l, leases.Resource{ID: name, Type: "snapshots/" + snapshotter})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPruneReclaims what the usage said that images take, less what somebody else
// keeps, and not what no image had: an archive's index, a blob of a broken pull.
func TestPruneReclaims(t *testing.T) {
	s := open(t)
	ctx := s.ctx(t.Context())
	for _, held := range []bool{false, true} {
		img := load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
		load(t, s, simple(t, "hello, too"), "docker.io/library/simple:2") // on the same layer
		du, err := s.DiskUsage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := du.Images
		if held {
			l := leases.Lease{ID: "builder"}
			if _, err := s.leases.Create(ctx, leases.WithID(l.ID)); err != nil {
				t.Fatal(err)
			}
			if err := s.leases.AddResource(ctx, l, leases.Resource{ID: img.Layers[0].Digest.String(), Type: "content"}); err != nil {
				t.Fatal(err)
			}
			want -= img.Layers[0].Size
		}
		if got, err := s.Prune(ctx, PruneOptions{All: true}); err != nil || got.Reclaimed != want {
			t.Errorf("of %d bytes of images and %d of content and layers, %d were reclaimed, want %d: %v", du.Images, du.Content+du.Layers, got.Reclaimed, want, err)
		}
	}
}
