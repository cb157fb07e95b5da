package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxManifest and maxConfig bound what is read into memory, in bytes.
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	// maxNesting is how deep an index may lie in another.
	maxNesting = 3
	// maxLayers is more than overlayfs can stack.
	maxLayers = 500

	attestationAnnotation = "vnd.docker.reference.type"
	parentLabel           = "berth.parent"
)

// Get finds an image by name, ID, or the beginning of an ID.
func (s *Store) Get(ctx context.Context, refOrID string) (Image, error) {
	return s.GetPlatform(ctx, refOrID, nil)
}

// GetPlatform is Get for the manifest of a platform; nil means the store's or, where
// the image lacks it, the first that is here. An image that lacks a platform that
// was named is an error.
func (s *Store) GetPlatform(ctx context.Context, refOrID string, platform *ocispec.Platform) (Image, error) {
	ctx = s.ctx(ctx)
	r, _, err := s.find(ctx, refOrID)
	if err != nil {
		return Image{}, err
	}
	img, err := s.image(ctx, r, platform)
	if err == nil && platform != nil && img.Manifest.Digest == "" {
		return Image{}, missingPlatform(refOrID, *platform)
	}
	return img, err
}

func missingPlatform(ref string, p ocispec.Platform) error {
	return fail(errdefs.ErrNotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(p))
}

// image reads what a record's target holds.
func (s *Store) image(ctx context.Context, r record, platform *ocispec.Platform) (Image, error) {
	img, known := s.known(r.target.Digest, platform)
	if !known {
		var err error
		if img, err = s.readImage(ctx, r.target, s.shown(platform)); err != nil {
			return Image{}, fmt.Errorf("image %s: %w", r.target.Digest, err)
		}
		s.remember(img, platform)
	}
	img.RepoTags, img.RepoDigests = r.shownNames()
	for _, name := range r.names {
		if name.UpdatedAt.After(img.TaggedAt) {
			img.TaggedAt = name.UpdatedAt
		}
		if parent := name.Labels[parentLabel]; parent != "" {
			img.Parent = digest.Digest(parent)
		}
	}
	return img, nil
}

func (s *Store) known(id digest.Digest, platform *ocispec.Platform) (Image, bool) {
	if platform != nil {
		return Image{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img, ok := s.resolved[id]
	return img, ok
}

func (s *Store) remember(img Image, platform *ocispec.Platform) {
	if platform != nil || img.Manifest.Digest == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolved[img.ID] = img
}

func (s *Store) matcher(platform *ocispec.Platform) platforms.MatchComparer {
	if platform == nil {
		return platforms.Only(s.platform)
	}
	return platforms.Only(platforms.Normalize(*platform))
}

// shown matches what an image is looked at as.
func (s *Store) shown(platform *ocispec.Platform) platforms.MatchComparer {
	if platform == nil {
		return prefer{platforms.Only(s.platform)}
	}
	return s.matcher(platform)
}

// prefer matches every platform, but first those that another matcher does.
type prefer struct{ first platforms.MatchComparer }

func (prefer) Match(ocispec.Platform) bool { return true }

func (p prefer) Less(a, b ocispec.Platform) bool {
	switch inA, inB := p.first.Match(a), p.first.Match(b); {
	case inA && inB:
		return p.first.Less(a, b)
	default:
		return inA && !inB
	}
}

// readImage reads manifests and configs from the content store; what is missing
// there is left out.
func (s *Store) readImage(ctx context.Context, target ocispec.Descriptor, match platforms.MatchComparer) (Image, error) {
	img := Image{ID: target.Digest, Target: target}
	blobs := map[digest.Digest]int64{}
	candidates, err := s.manifests(ctx, target, blobs, &img, 0)
	if err != nil {
		return Image{}, err
	}
	candidates = slices.DeleteFunc(candidates, func(c candidate) bool { return !match.Match(c.platform) })
	sort.SliceStable(candidates, func(i, j int) bool { return match.Less(candidates[i].platform, candidates[j].platform) })
	if len(candidates) > 0 {
		c := candidates[0]
		img.Manifest, img.Config, img.Layers = c.desc, c.manifest.Config, c.manifest.Layers
		if err := s.readJSON(ctx, c.manifest.Config, maxConfig, &img.Spec); err != nil {
			return Image{}, err
		}
		if img.Spec.Created != nil {
			img.Created = *img.Spec.Created
		}
		if ids := img.Spec.RootFS.DiffIDs; len(ids) > 0 {
			size, err := s.chainSize(ctx, identity.ChainID(slices.Clone(ids)))
			if err != nil && !errdefs.IsNotFound(err) {
				return Image{}, err
			}
			img.UnpackedSize = size
		}
	}
	for _, size := range blobs {
		img.ContentSize += size
	}
	return img, nil
}

// candidate is one manifest whose content is in the store.
type candidate struct {
	desc     ocispec.Descriptor
	platform ocispec.Platform
	manifest ocispec.Manifest
}

// manifests collects the manifests under desc that are whole, and counts all
// blobs that are there.
func (s *Store) manifests(ctx context.Context, desc ocispec.Descriptor, blobs map[digest.Digest]int64, img *Image, depth int) ([]candidate, error) {
	if depth > maxNesting {
		return nil, fail(errdefs.ErrInvalidArgument, "index within index, more than %d deep", maxNesting)
	}
	if !s.present(ctx, desc, blobs) {
		return nil, nil
	}
	if !images.IsIndexType(desc.MediaType) {
		c, ok, err := s.manifest(ctx, desc, blobs)
		if err != nil || !ok {
			return nil, err
		}
		return []candidate{c}, nil
	}
	var index ocispec.Index
	if err := s.readJSON(ctx, desc, maxManifest, &index); err != nil {
		return nil, err
	}
	var found []candidate
	for _, m := range index.Manifests {
		entry := PlatformManifest{Descriptor: m, Attestation: m.Annotations[attestationAnnotation] != ""}
		sub, err := s.manifests(ctx, m, blobs, img, depth+1)
		if err != nil {
			return nil, err
		}
		entry.Available = len(sub) > 0
		if depth == 0 {
			img.Manifests = append(img.Manifests, entry)
		}
		if !entry.Attestation {
			found = append(found, sub...)
		}
	}
	return found, nil
}

// manifest reads one manifest; ok says that all it names is in the store.
func (s *Store) manifest(ctx context.Context, desc ocispec.Descriptor, blobs map[digest.Digest]int64) (c candidate, ok bool, err error) {
	c.desc = desc
	if err := s.readJSON(ctx, desc, maxManifest, &c.manifest); err != nil {
		return c, false, err
	}
	ok = s.present(ctx, c.manifest.Config, blobs)
	for _, layer := range c.manifest.Layers {
		ok = s.present(ctx, layer, blobs) && ok
	}
	if !ok {
		return c, false, nil
	}
	if desc.Platform != nil && desc.Platform.Architecture != "" {
		c.platform = *desc.Platform
		return c, true, nil
	}
	if !images.IsConfigType(c.manifest.Config.MediaType) {
		return c, true, nil
	}
	err = s.readJSON(ctx, c.manifest.Config, maxConfig, &c.platform)
	c.platform = platforms.Normalize(c.platform)
	return c, err == nil, err
}

// present says whether a blob is in the store, and counts it.
func (s *Store) present(ctx context.Context, desc ocispec.Descriptor, blobs map[digest.Digest]int64) bool {
	if _, ok := blobs[desc.Digest]; ok {
		return true
	}
	info, err := s.content.Info(ctx, desc.Digest)
	if err != nil {
		return false
	}
	blobs[desc.Digest] = info.Size
	return true
}

// readJSON reads a blob of bounded size from the store.
func (s *Store) readJSON(ctx context.Context, desc ocispec.Descriptor, limit int64, v any) error {
	info, err := s.content.Info(ctx, desc.Digest)
	if err != nil {
		return err
	}
	if info.Size > limit {
		return fail(errdefs.ErrInvalidArgument, "%s of %d bytes is too large", desc.MediaType, info.Size)
	}
	desc.Size, desc.Data = info.Size, nil
	body, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fail(errdefs.ErrInvalidArgument, "%s %s is not valid: %s", desc.MediaType, desc.Digest, jsonProblem(err))
	}
	return nil
}

// jsonProblem says in short what is wrong.
func jsonProblem(err error) string {
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		if typeErr.Field == "" {
			return "unexpected " + typeErr.Value
		}
		return fmt.Sprintf("field %q: unexpected %s", typeErr.Field, typeErr.Value)
	}
	return err.Error()
}

// History tells how an image was made, newest step first. A nil platform is
// GetPlatform's.
func (s *Store) History(ctx context.Context, refOrID string, platform *ocispec.Platform) ([]History, error) {
	ctx = s.ctx(ctx)
	img, err := s.GetPlatform(ctx, refOrID, platform)
	if err != nil {
		return nil, err
	}
	chains := identity.ChainIDs(slices.Clone(img.Spec.RootFS.DiffIDs))
	var steps []History
	layer := 0
	for _, h := range img.Spec.History {
		step := History{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			step.Created = *h.Created
		}
		if !h.EmptyLayer && layer < len(chains) {
			usage, err := s.snap.Usage(ctx, chains[layer].String())
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			step.Size = usage.Size
			layer++
		}
		steps = append(steps, step)
	}
	slices.Reverse(steps)
	if len(steps) > 0 {
		steps[0].ID, steps[0].Tags = img.ID.String(), img.RepoTags
	}
	return steps, nil
}
