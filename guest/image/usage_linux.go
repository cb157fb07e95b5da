package image

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DiskUsage measures the whole store.
func (s *Store) DiskUsage(ctx context.Context) (du DiskUsage, err error) {
	ctx = s.ctx(ctx)
	err = s.content.Walk(ctx, func(info content.Info) error {
		du.Content += info.Size
		return nil
	})
	if err != nil {
		return du, err
	}
	seen := map[string]bool{} // directories
	err = s.snap.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if dir, err := filepath.EvalSymlinks(info.Labels[upperdirLabel]); err == nil {
			if seen[dir] {
				return nil
			}
			seen[dir] = true
		}
		usage, err := s.snap.Usage(ctx, info.Name)
		du.Layers += usage.Size
		return err
	})
	if err != nil {
		return du, err
	}
	parts, err := s.imagesParts(ctx)
	if err != nil {
		return du, err
	}
	du.Images = parts.size()
	for _, key := range s.RootfsKeys() {
		r, err := s.Rootfs(ctx, key)
		if err != nil {
			continue // removed meanwhile
		}
		rw, err := r.Usage(ctx)
		if err != nil {
			return du, err
		}
		du.Containers += rw
	}
	return du, nil
}

// imageParts are the sizes of what images have, each part once: their blobs, and
// their unpacked layers by chain ID.
type imageParts struct{ blobs, layers map[digest.Digest]int64 }

func (p imageParts) size() (total int64) {
	for _, sizes := range []map[digest.Digest]int64{p.blobs, p.layers} {
		for _, size := range sizes {
			total += size
		}
	}
	return total
}

// gone is the size of the parts that the store does not have any more.
func (s *Store) gone(ctx context.Context, p imageParts) (total int64, err error) {
	for blob, size := range p.blobs {
		_, err := s.content.Info(ctx, blob)
		if errdefs.IsNotFound(err) {
			total += size
		} else if err != nil {
			return total, err
		}
	}
	for chain, size := range p.layers {
		_, err := s.snap.Stat(ctx, chain.String())
		if errdefs.IsNotFound(err) {
			total += size
		} else if err != nil {
			return total, err
		}
	}
	return total, nil
}

// imagesParts finds what images have. An image that lost its last name while
// containers use it is one still.
func (s *Store) imagesParts(ctx context.Context) (imageParts, error) {
	list, err := s.images.List(ctx)
	if err != nil {
		return imageParts{}, err
	}
	targets := []ocispec.Descriptor{}
	for _, img := range list {
		targets = append(targets, img.Target)
	}
	for _, key := range s.RootfsKeys() {
		if r, err := s.Rootfs(ctx, key); err == nil { // not removed meanwhile
			targets = append(targets, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: r.Manifest})
		}
	}
	parts := imageParts{map[digest.Digest]int64{}, map[digest.Digest]int64{}}
	for _, t := range targets {
		found, err := s.manifests(ctx, t, parts.blobs, &Image{}, 0)
		if err != nil {
			return parts, err
		}
		for _, c := range found {
			if err := s.addLayers(ctx, c, parts.layers); err != nil {
				return parts, err
			}
		}
	}
	return parts, nil
}

// addLayers measures the unpacked layers of a manifest, by chain ID.
func (s *Store) addLayers(ctx context.Context, c candidate, layers map[digest.Digest]int64) error {
	var spec ocispec.Image
	if !images.IsConfigType(c.manifest.Config.MediaType) {
		return nil
	}
	if err := s.readJSON(ctx, c.manifest.Config, maxConfig, &spec); err != nil {
		return err
	}
	for _, chain := range identity.ChainIDs(slices.Clone(spec.RootFS.DiffIDs)) {
		if _, ok := layers[chain]; ok {
			continue
		}
		usage, err := s.snap.Usage(ctx, chain.String())
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		layers[chain] = usage.Size
	}
	return nil
}
