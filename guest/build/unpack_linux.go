package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/sysx"
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
	"golang.org/x/sys/unix"
)

// errUnlike says that an image's layers are not, one for one, the snapshots they
// were made from.
var errUnlike = errors.New("the layers are not the build's snapshots")

// unpack makes the snapshots that containers of an image stand on. The files are
// there, in the snapshots of the build: they are linked, and neither decompressed
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
	err = e.link(ctx, ref, manifest, group)
	if errors.Is(err, errUnlike) {
		return e.w.store.Unpack(ctx, target)
	}
	return err
}

// link makes the chain of snapshots of a manifest from the layers of ref.
func (e *imageExport) link(ctx context.Context, ref cache.ImmutableRef, manifest ocispec.Manifest, group session.Group) error {
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
	l := linker{e.w, group}
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

// linker makes snapshots of links.
type linker struct {
	w     *buildWorker
	group session.Group
}

// hold keeps the snapshots under ctx's lease, also those that are there already.
func (l linker) hold(ctx context.Context, names []digest.Digest) error {
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
func (l linker) snapshot(ctx context.Context, name, parent string, layer cache.ImmutableRef) error {
	parts := l.w.store.Parts()
	ctx = namespaces.WithNamespace(ctx, parts.Namespace)
	if _, err := parts.Snapshotter.Stat(ctx, name); err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	source, err := layer.Mount(ctx, true, l.group)
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
	key := "link-" + rand.Text()
	to, err := parts.Snapshotter.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	top, own := topDir(from, "lowerdir="), topDir(to, "upperdir=")
	if top == "" || own == "" {
		err = errUnlike
	} else if err = linkTree(top, own); err == nil {
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

// linkTree makes to, an empty directory, like from: directories are made anew, all
// else is linked. Nothing of either tree is ever changed afterwards.
func linkTree(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, d := range entries {
		src, dst := filepath.Join(from, d.Name()), filepath.Join(to, d.Name())
		if !d.IsDir() {
			if err := os.Link(src, dst); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
		if err := linkTree(src, dst); err != nil {
			return err
		}
	}
	return copyDir(from, to)
}

// copyDir gives a directory another's owner, mode, attributes and times.
func copyDir(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	names, err := sysx.LListxattr(from)
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: from, Err: err}
	}
	for _, n := range names {
		// Overlayfs's own of a mounted layer mean the directory they are on.
		if strings.HasPrefix(n, "trusted.overlay.") && n != "trusted.overlay.opaque" {
			continue
		}
		value, err := sysx.LGetxattr(from, n)
		if err == nil {
			err = sysx.LSetxattr(to, n, value, 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy attribute " + n, Path: to, Err: err}
		}
	}
	return os.Chtimes(to, time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()))
}
