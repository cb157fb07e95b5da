package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/image/inflate"
)

// Import makes an image of one layer from a tar, which may be compressed as
// inflate.New takes it.
func (s *Store) Import(ctx context.Context, r io.Reader, opts ImportOptions) (Image, error) {
	ctx = s.ctx(ctx)
	name, err := newName(opts.Ref)
	if err != nil {
		return Image{}, err
	}
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer s.collectSoon()
	defer done()
	plain, err := inflate.New(ctx, cancelReader{ctx, r})
	if err != nil {
		return Image{}, fmt.Errorf("cannot read the archive: %w", err)
	}
	defer plain.Close()
	layer, diffID, err := s.writeLayer(ctx, func(w io.Writer) error {
		_, err := io.Copy(w, plain)
		return err
	})
	if err != nil {
		return Image{}, badArchive(ctx, err)
	}
	platform := s.platform
	if opts.Platform != nil {
		platform = platforms.Normalize(*opts.Platform)
		if platform.OS == "" {
			platform.OS = s.platform.OS
		}
	}
	now := time.Now().UTC()
	spec := dockerspec.DockerOCIImage{
		Image: ocispec.Image{
			Created:  &now,
			Platform: platform,
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
			History:  []ocispec.History{{Created: &now, Comment: opts.Message}},
		},
		Config: opts.Config,
	}
	return s.addImage(ctx, name, spec, []ocispec.Descriptor{layer}, nil)
}

// Commit makes an image from a container's root filesystem: its image and a layer
// with the differences. A container that runs meanwhile may be caught in the
// middle of a change.
func (s *Store) Commit(ctx context.Context, key string, opts CommitOptions) (Image, error) {
	ctx = s.ctx(ctx)
	name, err := newName(opts.Ref)
	if err != nil {
		return Image{}, err
	}
	r, err := s.Rootfs(ctx, key)
	if err != nil {
		return Image{}, err
	}
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer s.collectSoon()
	defer done()
	base, err := s.readImage(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: r.Manifest}, anyPlatform{})
	if err == nil && base.Manifest.Digest == "" {
		err = fail(errdefs.ErrFailedPrecondition, "a blob is missing")
	}
	if err != nil {
		return Image{}, fmt.Errorf("the image of %s is not whole: %w", key, err)
	}
	layer, diffID, err := s.writeLayer(ctx, func(w io.Writer) error { return r.Pack(ctx, w) })
	if err != nil {
		return Image{}, fmt.Errorf("cannot commit %s: %w", key, err)
	}
	now := time.Now().UTC()
	spec := base.Spec
	spec.Created, spec.Author, spec.Config = &now, opts.Author, opts.Config
	spec.RootFS.Type = "layers"
	spec.RootFS.DiffIDs = append(slices.Clone(spec.RootFS.DiffIDs), diffID)
	spec.History = append(slices.Clone(spec.History), ocispec.History{
		Created: &now, Author: opts.Author, Comment: opts.Comment, CreatedBy: strings.Join(opts.Config.Cmd, " "),
	})
	var layers []ocispec.Descriptor
	for _, l := range base.Layers {
		layers = append(layers, ocispec.Descriptor{MediaType: ociLayerType(l.MediaType), Digest: l.Digest, Size: l.Size})
	}
	return s.addImage(ctx, name, spec, append(layers, layer), map[string]string{parentLabel: r.Image.String()})
}

// anyPlatform matches every platform.
type anyPlatform struct{}

func (anyPlatform) Match(ocispec.Platform) bool                  { return true }
func (anyPlatform) Less(ocispec.Platform, ocispec.Platform) bool { return false }

// newName returns the database's name for a reference users give a new image, or
// "" when they give none.
func newName(ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	named, err := parseRef(ref)
	if err != nil {
		return "", err
	}
	if refDigest(named) != "" {
		return "", fail(errdefs.ErrInvalidArgument, "a new image cannot be named by digest")
	}
	return dbName(named), nil
}

// ociLayerType gives docker's layer types the OCI's names; the bytes are the same.
func ociLayerType(mediaType string) string {
	switch mediaType {
	case images.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	case images.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	}
	return mediaType
}

// writeLayer stores what write produces, a tar, as a compressed layer.
func (s *Store) writeLayer(ctx context.Context, write func(io.Writer) error) (_ ocispec.Descriptor, diffID digest.Digest, err error) {
	lease, _ := leases.FromContext(ctx)
	w, err := content.OpenWriter(ctx, s.content, content.WithRef(lease+"-layer"))
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer w.Close()
	zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	plain := digest.Canonical.Digester()
	if err := write(io.MultiWriter(zip, plain.Hash())); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := zip.Close(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	status, err := w.Status()
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: w.Digest(), Size: status.Offset}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, "", err
	}
	return desc, plain.Digest(), nil
}

// addImage stores the config and the manifest of an image whose layers are in the
// store, unpacks it and gives it a name.
func (s *Store) addImage(ctx context.Context, name string, spec dockerspec.DockerOCIImage, layers []ocispec.Descriptor, labels map[string]string) (Image, error) {
	config, err := s.writeJSON(ctx, ocispec.MediaTypeImageConfig, spec)
	if err != nil {
		return Image{}, err
	}
	manifest, err := s.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	})
	if err != nil {
		return Image{}, err
	}
	platform := spec.Platform
	manifest.Platform = &platform
	if err := s.unpackMade(ctx, manifest); err != nil {
		return Image{}, err
	}
	if name == "" {
		name = danglingPrefix + manifest.Digest.String()
	}
	if err := s.setName(ctx, name, manifest, labels); err != nil {
		return Image{}, err
	}
	if labels != nil {
		s.forget()
	}
	return s.Get(ctx, manifest.Digest.String())
}

func (s *Store) unpackMade(ctx context.Context, manifest ocispec.Descriptor) error {
	children := checkChildren(images.ChildrenHandler(s.content))
	children = images.SetChildrenMappedLabels(s.content, children, images.ChildGCLabels)
	return s.unpack(ctx, children, anyPlatform{}, newReporter(nil), manifest)
}

func (s *Store) writeJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	err = content.WriteBlob(ctx, s.content, "json-"+desc.Digest.String(), bytes.NewReader(body), desc)
	return desc, err
}

// named says whether a database name is one users gave.
func named(name string) bool {
	_, err := reference.ParseNormalizedNamed(name)
	return err == nil && !isDangling(name)
}
