package image

import (
	"context"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// List returns the images that match, the newest first.
func (s *Store) List(ctx context.Context, opts ListOptions) ([]Image, error) {
	ctx = s.ctx(ctx)
	before, since, err := s.bounds(ctx, opts)
	if err != nil {
		return nil, err
	}
	records, err := s.records(ctx)
	if err != nil {
		return nil, err
	}
	var list []Image
	for _, r := range records {
		img, err := s.image(ctx, r, nil)
		if err != nil {
			// One damaged image must not hide the others.
			s.log.Warn("cannot read an image", "image", r.target.Digest, "error", err)
			img = Image{ID: r.target.Digest, Target: r.target}
			img.RepoTags, img.RepoDigests = r.shownNames()
		}
		if !before.IsZero() && !img.Created.Before(before) || !since.IsZero() && !img.Created.After(since) {
			continue
		}
		if opts.match(&img) {
			list = append(list, img)
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Created.After(list[j].Created) })
	return list, nil
}

// bounds finds the times that the filters before and since mean.
func (s *Store) bounds(ctx context.Context, opts ListOptions) (before, since time.Time, err error) {
	for _, ref := range opts.Before {
		img, err := s.Get(ctx, ref)
		if err != nil {
			return before, since, err
		}
		if before.IsZero() || img.Created.Before(before) {
			before = img.Created
		}
	}
	for _, ref := range opts.Since {
		img, err := s.Get(ctx, ref)
		if err != nil {
			return before, since, err
		}
		if img.Created.After(since) {
			since = img.Created
		}
	}
	return before, since, nil
}

// match applies all filters but before and since. The filter reference also
// drops the names that do not match.
func (o ListOptions) match(img *Image) bool {
	if o.Dangling != nil && *o.Dangling != (len(img.RepoTags) == 0) {
		return false
	}
	for _, t := range o.Until {
		if !img.Created.Before(t) {
			return false
		}
	}
	for _, l := range o.Labels {
		if !hasLabel(img.Spec.Config.Labels, l) {
			return false
		}
	}
	for _, l := range o.NotLabels {
		if hasLabel(img.Spec.Config.Labels, l) {
			return false
		}
	}
	if len(o.Reference) == 0 {
		return true
	}
	img.RepoTags = matching(img.RepoTags, o.Reference)
	img.RepoDigests = matching(img.RepoDigests, o.Reference)
	return len(img.RepoTags)+len(img.RepoDigests) > 0
}

func hasLabel(labels map[string]string, filter string) bool {
	key, value, exact := strings.Cut(filter, "=")
	have, ok := labels[key]
	return ok && (!exact || have == value)
}

// matching returns the names that match one of the patterns, as a whole or
// without tag or digest.
func matching(names, patterns []string) []string {
	var found []string
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		for _, p := range patterns {
			if matchName(p, name) || matchName(p, reference.FamiliarName(named)) || matchName(p, named.Name()) || matchName(p, named.String()) {
				found = append(found, name)
				break
			}
		}
	}
	return found
}

func matchName(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok || pattern == name
}

// SharedSizes returns how many bytes of each image's unpacked layers other images
// in the list have, too.
func (s *Store) SharedSizes(ctx context.Context, list []Image) (map[digest.Digest]int64, error) {
	ctx = s.ctx(ctx)
	users := map[digest.Digest]int{} // of a layer on top of those below it
	for _, img := range list {
		for _, chain := range identity.ChainIDs(slices.Clone(img.Spec.RootFS.DiffIDs)) {
			users[chain]++
		}
	}
	shared := map[digest.Digest]int64{}
	for _, img := range list {
		var total int64
		for _, chain := range identity.ChainIDs(slices.Clone(img.Spec.RootFS.DiffIDs)) {
			if users[chain] < 2 {
				continue
			}
			usage, err := s.snap.Usage(ctx, chain.String())
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			total += usage.Size
		}
		shared[img.ID] = total
	}
	return shared, nil
}
