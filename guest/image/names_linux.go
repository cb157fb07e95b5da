package image

import (
	"context"
	"sort"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/ident"
)

// danglingPrefix starts the database's names of images without names; the
// target's digest follows.
const danglingPrefix = "dangling@"

// parseRef reads a reference as users write it; one without tag and digest gets
// the tag latest.
func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fail(errdefs.ErrInvalidArgument, "%s", err)
	}
	return reference.TagNameOnly(named), nil
}

// dbName returns the database's name of a reference: with the tag, or else the
// digest. A reference with both is known by its tag.
func dbName(named reference.Named) string {
	if tagged, ok := named.(reference.Tagged); ok {
		return named.Name() + ":" + tagged.Tag()
	}
	return named.String()
}

func refDigest(named reference.Named) digest.Digest {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

func isDangling(name string) bool { return strings.HasPrefix(name, danglingPrefix) }

// record is one target with all the names the database has for it.
type record struct {
	target ocispec.Descriptor
	names  []images.Image // never empty, sorted by name
}

// records reads all names, grouped by target.
func (s *Store) records(ctx context.Context) ([]record, error) {
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	byTarget := map[digest.Digest]int{}
	var records []record
	for _, img := range all {
		i, ok := byTarget[img.Target.Digest]
		if !ok {
			i = len(records)
			byTarget[img.Target.Digest] = i
			records = append(records, record{target: img.Target})
		}
		records[i].names = append(records[i].names, img)
	}
	for _, r := range records {
		sort.Slice(r.names, func(i, j int) bool { return r.names[i].Name < r.names[j].Name })
	}
	return records, nil
}

// find resolves what a user calls an image: a name, a name with a digest, an ID
// or the beginning of one. matched is the database's name that was meant; it is
// empty when the image was named by ID.
func (s *Store) find(ctx context.Context, refOrID string) (r record, matched string, err error) {
	notFound := func() error { return noImage(refOrID) }
	records, err := s.records(ctx)
	if err != nil {
		return record{}, "", err
	}
	if d, err := digest.Parse(refOrID); err == nil {
		return byDigest(records, d, notFound)
	}
	if ident.Hex(refOrID, 64, 64) {
		return byDigest(records, digest.NewDigestFromEncoded(digest.SHA256, refOrID), notFound)
	}
	named, refErr := parseRef(refOrID)
	if refErr == nil {
		if r, matched, ok := byName(records, named); ok {
			return r, matched, nil
		}
	}
	id := strings.TrimPrefix(refOrID, string(digest.SHA256)+":")
	if !ident.Hex(id, 4, 64) {
		if refErr != nil {
			return record{}, "", refErr
		}
		return record{}, "", notFound()
	}
	var found []record
	for _, r := range records {
		if strings.HasPrefix(r.target.Digest.Encoded(), id) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return record{}, "", notFound()
	case 1:
		return found[0], "", nil
	}
	return record{}, "", fail(errdefs.ErrInvalidArgument, "ambiguous ID %s: more than one image begins with it", refOrID)
}

// noImage is the error of an image that is not there.
func noImage(refOrID string) error {
	shown := refOrID
	if named, err := parseRef(refOrID); err == nil && !ident.Hex(refOrID, 64, 64) {
		shown = reference.FamiliarString(named)
	}
	return fail(errdefs.ErrNotFound, "No such image: %s", shown) //nolint:staticcheck // docker's words
}

func byDigest(records []record, d digest.Digest, notFound func() error) (record, string, error) {
	for _, r := range records {
		if r.target.Digest == d {
			return r, "", nil
		}
	}
	return record{}, "", notFound()
}

// byName finds a name. A digest must be the target's, whatever name the target
// was pulled by, as long as the repository is the same.
func byName(records []record, named reference.Named) (record, string, bool) {
	want, name := refDigest(named), dbName(named)
	for _, r := range records {
		for _, img := range r.names {
			if want != "" && r.target.Digest != want {
				continue
			}
			if img.Name == name || want != "" && repository(img.Name) == named.Name() {
				return r, img.Name, true
			}
		}
	}
	return record{}, "", false
}

// isTagged says whether a name of the database has a tag; if not, it has a digest.
func isTagged(name string) bool {
	named, err := reference.ParseNormalizedNamed(name)
	_, tagged := named.(reference.Tagged)
	return err == nil && tagged && !isDangling(name)
}

// repository returns the repository of a name of the database, or "".
func repository(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || isDangling(name) {
		return ""
	}
	return named.Name()
}

// shownNames returns the names of a record as docker shows them.
func (r record) shownNames() (tags, digests []string) {
	seen := map[string]bool{}
	for _, img := range r.names {
		if isDangling(img.Name) {
			continue
		}
		named, err := reference.ParseNormalizedNamed(img.Name)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.Tagged); ok {
			tags = append(tags, reference.FamiliarString(named))
		}
		d := reference.FamiliarName(named) + "@" + r.target.Digest.String()
		if !seen[d] {
			seen[d] = true
			digests = append(digests, d)
		}
	}
	return tags, digests
}

// setName lets a name point at a target; what it pointed at before stays, without
// a name if it had no other.
func (s *Store) setName(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) error {
	s.tagging.Lock()
	defer s.tagging.Unlock()
	old, err := s.images.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = s.images.Create(ctx, images.Image{Name: name, Target: target, Labels: labels})
	case err != nil:
		return err
	case old.Target.Digest == target.Digest:
		return s.dropDangling(ctx, target.Digest)
	default:
		if err := s.keepDangling(ctx, old); err != nil {
			return err
		}
		_, err = s.images.Update(ctx, images.Image{Name: name, Target: target, Labels: labels})
	}
	if err != nil {
		return err
	}
	if isDangling(name) {
		return nil
	}
	return s.dropDangling(ctx, target.Digest)
}

// keepDangling gives an image that loses a name the name of those that have none.
func (s *Store) keepDangling(ctx context.Context, img images.Image) error {
	name := danglingPrefix + img.Target.Digest.String()
	_, err := s.images.Create(ctx, images.Image{Name: name, Target: img.Target, Labels: img.Labels})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// dropDangling removes the name of those that have none from an image that has
// one again.
func (s *Store) dropDangling(ctx context.Context, d digest.Digest) error {
	err := s.images.Delete(ctx, danglingPrefix+d.String())
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Tag gives an image another name, taking it from the image that has it.
func (s *Store) Tag(ctx context.Context, refOrID, newRef string) (Image, error) {
	ctx = s.ctx(ctx)
	named, err := parseRef(newRef)
	if err != nil {
		return Image{}, err
	}
	if refDigest(named) != "" {
		return Image{}, fail(errdefs.ErrInvalidArgument, "refusing to create a tag with a digest reference")
	}
	if name := reference.FamiliarName(named); name == string(digest.Canonical) {
		return Image{}, fail(errdefs.ErrInvalidArgument, "refusing to create an ambiguous tag using digest algorithm as name")
	} else if ident.Hex(name, 64, 64) {
		return Image{}, fail(errdefs.ErrInvalidArgument, "refusing to create a name that looks like an ID")
	}
	r, _, err := s.find(ctx, refOrID)
	if err != nil {
		return Image{}, err
	}
	if err := s.setName(ctx, dbName(named), r.target, r.names[0].Labels); err != nil {
		return Image{}, err
	}
	return s.Get(ctx, r.target.Digest.String())
}
