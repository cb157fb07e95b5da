package image

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Parts are the store's own databases, for a builder in the same process that
// keeps its layers and blobs beside the images'. They are valid until Close, and
// take contexts with the namespace Namespace. What their user wants kept from the
// garbage collection it holds by leases or references of its own.
type Parts struct {
	Namespace       string
	SnapshotterName string
	Content         content.Store
	// Snapshotter flushes an image's layer, a snapshot that is named by its chain ID, to
	// the disk before it is committed. What is committed under another name may be
	// there without its files after a power cut: see Forget.
	Snapshotter snapshots.Snapshotter
	Leases      leases.Manager
	// Images is for reading only: names are moved by Store.Name.
	Images  images.Store
	Collect func(context.Context) (gc.Stats, error)
	// Forget lets go of all that is held by a lease which is not the store's own: of
	// what was made before a power cut, and cannot be trusted after it.
	Forget func(context.Context) error
	// Share gives a snapshot that is being made the files of a committed one, which
	// it may outlive, instead of its own. Both are named by what they mount: the
	// uppermost directory.
	Share func(from, to string) error
	// Hosts says how a registry is reached. It gives no credentials.
	Hosts docker.RegistryHosts
	// Transport makes the requests that go elsewhere than to a registry.
	Transport http.RoundTripper
}

// Parts returns the store's parts.
func (s *Store) Parts() Parts {
	return Parts{
		Namespace: namespace, SnapshotterName: snapshotter,
		Content: s.content, Snapshotter: durable{s.snap, s.root}, Leases: s.leases, Images: s.images,
		Collect: s.garbageCollect, Forget: s.forgetLeases, Share: s.share,
		Hosts: s.registry.Hosts(), Transport: s.registry.Transport(),
	}
}

// Name gives target, whose content is in the store and unpacked, a name, or with
// an empty one none. What had the name before stays without it. It returns the
// name as docker shows it.
func (s *Store) Name(ctx context.Context, ref string, target ocispec.Descriptor) (string, error) {
	ctx = s.ctx(ctx)
	name, err := newName(ref)
	if err != nil {
		return "", err
	}
	shown := ""
	if named, err := parseRef(ref); err == nil {
		shown = reference.FamiliarString(named)
	}
	if name == "" {
		name = danglingPrefix + target.Digest.String()
		if r, _, err := s.find(ctx, target.Digest.String()); err == nil && len(r.names) > 0 {
			return "", nil // it has a name, if only that of those without
		}
	}
	target.Annotations = nil
	if err := s.setName(ctx, name, target, nil); err != nil {
		return "", err
	}
	s.forget()
	return shown, nil
}

// Unpack unpacks an image whose content is in the store, for this machine's
// platform.
func (s *Store) Unpack(ctx context.Context, target ocispec.Descriptor) error {
	ctx, done, err := s.lease(s.ctx(ctx))
	if err != nil {
		return err
	}
	defer done()
	match := platforms.Only(s.platform)
	children := checkChildren(images.ChildrenHandler(s.content))
	children = images.SetChildrenMappedLabels(s.content, children, images.ChildGCLabels)
	return s.unpack(ctx, images.FilterPlatforms(children, match), match, newReporter(nil), target)
}

func (s *Store) share(from, to string) error {
	name := func(dir string) (string, error) {
		snapshot := filepath.Dir(dir)
		if filepath.Dir(snapshot) != s.layersPath() {
			return "", fmt.Errorf("%s is no layer", dir)
		}
		return filepath.Base(snapshot), nil
	}
	source, err := name(from)
	if err != nil {
		return err
	}
	target, err := name(to)
	if err != nil {
		return err
	}
	return s.trees.Share(source, target)
}

// ownLeases begin the names of the store's leases.
var ownLeases = []string{operationPrefix, pullPrefix, usedPrefix}

func (s *Store) forgetLeases(ctx context.Context) error {
	ctx = s.ctx(ctx)
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	err = s.db.Update(func(tx *bolt.Tx) error { // one flush for all
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, l := range all {
			if slices.ContainsFunc(ownLeases, func(own string) bool { return strings.HasPrefix(l.ID, own) }) {
				continue
			}
			if err := s.leases.Delete(ctx, l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("let go of a builder's leases: %w", err)
	}
	s.collectSoon()
	return nil
}

// durable is a snapshotter whose layers survive a power cut: the database must not
// know a layer of an image whose files are not on the disk yet. A build's steps have
// other names, and need not wait for the disk.
type durable struct {
	snapshots.Snapshotter
	root string // on the filesystem that holds the layers
}

// Commit implements snapshots.Snapshotter.
func (d durable) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if _, err := digest.Parse(name); err == nil {
		if err := SyncFS(d.root); err != nil {
			return fmt.Errorf("cannot flush snapshot %s: %w", key, err)
		}
	}
	return d.Snapshotter.Commit(ctx, name, key, opts...)
}

// SyncFS flushes the file system that has dir.
func SyncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}
