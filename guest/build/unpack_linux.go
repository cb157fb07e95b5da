package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errUnlike says that an image's layers are not, one for one, the snapshots they
// were made from.
var errUnlike = errors.New("the layers are not the build's snapshots")

// unpack makes the snapshots that containers of an image stand on. The files are
// there, in the snapshots of the build: they are shared, and neither decompressed
// nor copied. What the image has for other platforms stays packed.
func (e *imageExport) unpack(ctx context.Context, src *exporter.Source, target ocispec.Descriptor, sessionID string) error {
	matcher := platforms.Only(platforms.DefaultSpec())
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return err
	}
	var ref cache.ImmutableRef
	for _, p := range ps.Platforms {
		if matcher.Match(p.Platform) {
			ref, _ = src.FindRef(p.ID)
			break
		}
	}
	if ref == nil {
		return nil // nothing for this machine, or nothing in it
	}
	ctx, done, err := leaseutil.WithLease(ctx, e.w.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	manifest, err := images.Manifest(ctx, e.w.ContentStore(), target, matcher)
	if err != nil {
		return err
	}
	group := session.NewGroup(sessionID)
	err = e.share(ctx, ref, manifest, group)
	if errors.Is(err, errUnlike) {
		return e.w.store.Unpack(ctx, target)
	}
	return err
}

// share makes the chain of snapshots of a manifest from the layers of ref.
func (e *imageExport) share(ctx context.Context, ref cache.ImmutableRef, manifest ocispec.Manifest, group session.Group) error {
	remotes, err := ref.GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: e.Config().Compression()}, false, group)
	if err != nil {
		return err
	}
	chain := ref.LayerChain()
	defer func() { _ = chain.Release(context.WithoutCancel(ctx)) }()
	blobs := remotes[0].Descriptors
	if len(blobs) != len(manifest.Layers) || len(blobs) != len(chain) {
		return errUnlike
	}
	var diffs []digest.Digest
	for i, blob := range blobs {
		if blob.Digest != manifest.Layers[i].Digest {
			return errUnlike
		}
		diffs = append(diffs, digest.Digest(blob.Annotations[labels.LabelUncompressed]))
	}
	names := identity.ChainIDs(append([]digest.Digest(nil), diffs...))
	l := sharer{e.w, group}
	if err := l.hold(ctx, names); err != nil {
		return err
	}
	parent := ""
	for i, name := range names {
		if err := l.snapshot(ctx, name.String(), parent, chain[i]); err != nil {
			return fmt.Errorf("unpack layer %s: %w", blobs[i].Digest, err)
		}
		parent = name.String()
	}
	if parent == "" {
		return nil
	}
	label := "containerd.io/gc.ref.snapshot." + e.w.Snapshotter.Name()
	_, err = e.w.ContentStore().Update(ctx, content.Info{
		Digest: manifest.Config.Digest, Labels: map[string]string{label: parent},
	}, "labels."+label)
	return err
}

// sharer makes snapshots with the files of others.
type sharer struct {
	w     *buildWorker
	group session.Group
}

// hold keeps the snapshots under ctx's lease, also those that are there already.
func (l sharer) hold(ctx context.Context, names []digest.Digest) error {
	id, _ := leases.FromContext(ctx)
	for _, n := range names {
		r := leases.Resource{ID: n.String(), Type: "snapshots/" + l.w.Snapshotter.Name()}
		if err := l.w.LeaseManager().AddResource(ctx, leases.Lease{ID: id}, r); err != nil {
			return err
		}
	}
	return nil
}

// snapshot makes the snapshot name on parent, with what layer has of its own.
func (l sharer) snapshot(ctx context.Context, name, parent string, layer cache.ImmutableRef) error {
	parts := l.w.store.Parts()
	ctx = namespaces.WithNamespace(ctx, parts.Namespace)
	if _, err := parts.Snapshotter.Stat(ctx, name); err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	source, err := layer.Mount(ctx, true, l.group) // unpacks it, if it is one that is not yet
	if err != nil {
		return err
	}
	from, release, err := source.Mount()
	if err != nil {
		return err
	}
	if release != nil {
		defer func() { _ = release() }()
	}
	key := "share-" + rand.Text()
	to, err := parts.Snapshotter.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	top, own := topDir(from, "lowerdir="), topDir(to, "upperdir=")
	if top == "" || own == "" || stands(to, top) {
		err = errUnlike
	} else if err = parts.Share(top, own); err == nil {
		err = parts.Snapshotter.Commit(ctx, name, key)
	}
	if err != nil {
		err = errors.Join(err, parts.Snapshotter.Remove(context.WithoutCancel(ctx), key))
	}
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// stands says whether mounts have a directory below the top already, if by another
// name. An overlay cannot have one twice: an image with two equal layers that are one
// snapshot.
func stands(mounts []mount.Mount, dir string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false // as a mount will say
	}
	for _, d := range lowerDirs(mounts) {
		if r, err := filepath.EvalSymlinks(d); err == nil && r == real {
			return true
		}
	}
	return false
}

// lowerDirs are the directories below the top of an overlay.
func lowerDirs(mounts []mount.Mount) []string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return strings.Split(dirs, ":")
			}
		}
	}
	return nil
}

// topDir returns the uppermost directory that mounts name in an overlay's option, or
// the directory they bind. It is empty when they are of another kind.
func topDir(mounts []mount.Mount, option string) string {
	if len(mounts) != 1 {
		return ""
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return m.Source
	case "overlay":
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, option); ok {
				top, _, _ := strings.Cut(dirs, ":")
				return top
			}
		}
	}
	return ""
}
