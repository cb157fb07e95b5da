package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remove takes a name off an image, and removes the image with its last one. With
// its last tag a repository's digests go, too; a digest means all of its
// repository's names. An image in use, or one with several tags or repositories that
// is given by ID, is a conflict unless forced; one that a running container uses is
// never removed.
func (s *Store) Remove(ctx context.Context, refOrID string, opts RemoveOptions) ([]Deleted, error) {
	ctx = s.ctx(ctx)
	s.tagging.Lock()
	defer s.tagging.Unlock()
	r, matched, err := s.find(ctx, refOrID)
	if err != nil {
		return nil, err
	}
	drop := r.names
	if matched != "" {
		if drop = namesToDrop(r, refOrID); len(drop) == 0 {
			return nil, noImage(refOrID)
		}
	}
	last := len(drop) == len(r.names)
	if last {
		if err := inUse(refOrID, r.target.Digest, matched != "", opts.users(r.target.Digest), opts.Force); err != nil {
			return nil, err
		}
	}
	if matched == "" && !opts.Force && !single(drop) {
		return nil, fail(errdefs.ErrConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", shortID(r.target.Digest))
	}
	deleted, err := s.dropNames(ctx, r, drop)
	if err != nil || !last {
		return deleted, err
	}
	s.collectSoon()
	return append(deleted, Deleted{Deleted: r.target.Digest}), nil
}

// RemovePlatforms removes some platforms of an image and leaves its names and the
// others. What a running container uses stays.
func (s *Store) RemovePlatforms(ctx context.Context, refOrID string, list []ocispec.Platform, opts RemoveOptions) ([]Deleted, error) {
	ctx = s.ctx(ctx)
	if !opts.Force {
		return nil, fail(errdefs.ErrInvalidArgument, "Content will be removed from all images referencing this variant. Use --force to force delete.") //nolint:staticcheck // docker's words
	}
	s.tagging.Lock()
	defer s.tagging.Unlock()
	r, _, err := s.find(ctx, refOrID)
	if err != nil {
		return nil, err
	}
	var deleted []Deleted
	for _, p := range list {
		img, err := s.image(ctx, r, &p)
		if err != nil {
			return deleted, err
		}
		if img.Manifest.Digest == "" {
			return deleted, missingPlatform(refOrID, p)
		}
		for _, u := range opts.users(img.ID) {
			if u.Running && (u.Manifest == "" || u.Manifest == img.Manifest.Digest) {
				return deleted, fail(errdefs.ErrConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s",
					shortID(img.Manifest.Digest), shortContainer(u.ContainerID))
			}
		}
		// What only the manifest refers to goes with the next collection.
		if err := s.content.Delete(ctx, img.Manifest.Digest); err != nil && !errdefs.IsNotFound(err) {
			return deleted, err
		}
		s.forget()
		deleted = append(deleted, Deleted{Deleted: img.Manifest.Digest})
	}
	s.collectSoon()
	return deleted, nil
}

// users tells who uses an image.
func (o RemoveOptions) users(id digest.Digest) []User {
	if o.Users == nil {
		return nil
	}
	return o.Users(id)
}

// namesToDrop returns the database's names that a removal of one takes away: a tag,
// and when that is its repository's last, the repository's digests; or for a digest
// all that the repository has for the image.
func namesToDrop(r record, asked string) []images.Image {
	name, err := parseRef(asked)
	if err != nil {
		return nil
	}
	_, one := name.(reference.Tagged)
	var drop, others []images.Image
	last := true
	for _, img := range r.names {
		switch {
		case isDangling(img.Name):
			others = append(others, img)
		case repository(img.Name) != name.Name():
		case !one || img.Name == dbName(name):
			drop = append(drop, img)
		case isTagged(img.Name):
			last = false
		default:
			others = append(others, img)
		}
	}
	if len(drop) > 0 && last {
		drop = append(drop, others...)
	}
	return drop
}

// single says whether names are one repository's, with no more than one tag.
func single(list []images.Image) bool {
	tags, repositories := 0, map[string]bool{}
	for _, img := range list {
		if isDangling(img.Name) {
			continue
		}
		repositories[repository(img.Name)] = true
		if isTagged(img.Name) {
			tags++
		}
	}
	return tags <= 1 && len(repositories) <= 1
}

// inUse returns the conflict when containers use an image.
func inUse(shown string, id digest.Digest, byName bool, users []User, force bool) error {
	for _, u := range users {
		if u.Running {
			if byName && !force {
				return fail(errdefs.ErrConflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", shown, shortContainer(u.ContainerID), shortID(id))
			}
			return fail(errdefs.ErrConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", shortID(id), shortContainer(u.ContainerID))
		}
	}
	if len(users) == 0 || force {
		return nil
	}
	if byName {
		return fail(errdefs.ErrConflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", shown, shortContainer(users[0].ContainerID), shortID(id))
	}
	return fail(errdefs.ErrConflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", shortID(id), shortContainer(users[0].ContainerID))
}

func shortContainer(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// dropNames takes names off an image. The caller holds tagging.
func (s *Store) dropNames(ctx context.Context, r record, drop []images.Image) ([]Deleted, error) {
	var deleted []Deleted
	for _, img := range drop {
		if err := s.images.Delete(ctx, img.Name); err != nil && !errdefs.IsNotFound(err) {
			return deleted, err
		}
		if !named(img.Name) {
			continue
		}
		shown := img.Name
		if n, err := reference.ParseNormalizedNamed(img.Name); err == nil {
			shown = reference.FamiliarString(n)
		}
		deleted = append(deleted, Deleted{Untagged: shown, ID: r.target.Digest})
	}
	return deleted, nil
}

// Prune removes the images without names, or all names, that no container was made
// from, and what broken pulls left. An image that a container uses keeps a name,
// though it may not be the one that the container was made from. It waits until the
// space is free.
func (s *Store) Prune(ctx context.Context, opts PruneOptions) (Pruned, error) {
	ctx = s.ctx(ctx)
	before, err := s.imagesParts(ctx)
	if err != nil {
		return Pruned{}, err
	}
	list := opts.List
	if !opts.All {
		dangling := true
		list.Dangling = &dangling
	}
	found, err := s.List(ctx, list)
	if err != nil {
		return Pruned{}, err
	}
	wanted := opts.wanted()
	var pruned Pruned
	for _, img := range found {
		deleted, err := s.pruneImage(ctx, img.ID, wanted, len(opts.Users[img.ID]) > 0)
		if err != nil {
			return pruned, err
		}
		pruned.Deleted = append(pruned.Deleted, deleted...)
	}
	if err := s.dropBroken(ctx); err != nil {
		return pruned, err
	}
	if err := s.collect(ctx); err != nil {
		return pruned, err
	}
	pruned.Reclaimed, err = s.gone(ctx, before)
	return pruned, err
}

// wanted are the database's names by which containers know their images.
func (o PruneOptions) wanted() map[string]bool {
	out := map[string]bool{}
	for _, refs := range o.Users {
		for _, ref := range refs {
			if named, err := parseRef(ref); err == nil {
				out[dbName(named)] = true
			}
		}
	}
	return out
}

// pruneImage takes the names that are not wanted off an image, but for the last of
// one in use, and removes an image that has none left.
func (s *Store) pruneImage(ctx context.Context, id digest.Digest, wanted map[string]bool, used bool) ([]Deleted, error) {
	s.tagging.Lock()
	defer s.tagging.Unlock()
	r, _, err := s.find(ctx, id.String())
	if errdefs.IsNotFound(err) {
		return nil, nil // removed meanwhile
	}
	if err != nil {
		return nil, err
	}
	var drop []images.Image
	for _, img := range r.names {
		if !wanted[img.Name] {
			drop = append(drop, img)
		}
	}
	if used && len(drop) == len(r.names) {
		drop = drop[:len(drop)-1]
	}
	deleted, err := s.dropNames(ctx, r, drop)
	if err != nil || len(drop) < len(r.names) {
		return deleted, err
	}
	return append(deleted, Deleted{Deleted: r.target.Digest}), nil
}
