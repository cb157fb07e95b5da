package image

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthvm/berth/guest/image/registry"
)

const maxUploads = 4 // blobs of one push at once

// Push sends an image, or every tag of a repository, to its registry. Blobs that
// the registry has in another repository are mounted from there.
func (s *Store) Push(ctx context.Context, ref string, opts PushOptions) ([]Pushed, error) {
	ctx = s.ctx(ctx)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fail(errdefs.ErrInvalidArgument, "%s", err)
	}
	report := newReporter(opts.Progress)
	if !opts.All {
		tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
		if !ok {
			return nil, fail(errdefs.ErrInvalidArgument, "cannot push a digest reference")
		}
		p, err := s.pushOne(ctx, tagged, opts, report)
		if err != nil {
			return nil, err
		}
		return []Pushed{p}, nil
	}
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	var pushed []Pushed
	for _, img := range all {
		other, err := reference.ParseNormalizedNamed(img.Name)
		tagged, ok := other.(reference.NamedTagged)
		if err != nil || !ok || other.Name() != named.Name() {
			continue
		}
		p, err := s.pushOne(ctx, tagged, opts, report)
		if err != nil {
			return pushed, err
		}
		pushed = append(pushed, p)
	}
	if len(pushed) == 0 {
		return nil, noLocal(named)
	}
	return pushed, nil
}

func noLocal(named reference.Named) error {
	return fail(errdefs.ErrNotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(named)) //nolint:staticcheck // docker's words
}

func (s *Store) pushOne(ctx context.Context, named reference.NamedTagged, opts PushOptions, report *reporter) (Pushed, error) {
	report.line(Progress{Status: fmt.Sprintf("The push refers to repository [%s]", named.Name())})
	img, err := s.images.Get(ctx, dbName(named))
	if errdefs.IsNotFound(err) {
		return Pushed{}, fail(errdefs.ErrNotFound, "tag does not exist: %s", reference.FamiliarString(named))
	}
	if err != nil {
		return Pushed{}, err
	}
	target, err := s.pushTarget(ctx, img.Target, opts.Platform, report)
	if err != nil {
		return Pushed{}, err
	}
	done, err := s.hold(ctx, target.Digest)
	if err != nil {
		return Pushed{}, err
	}
	defer done()
	tracker := docker.NewInMemoryTracker()
	pusher, err := s.registry.Resolver(ctx, opts.Auth, tracker).Pusher(ctx, named.String()+"@"+target.Digest.String())
	if err != nil {
		return Pushed{}, registry.Explain(err, named, registry.Push)
	}
	p := &push{store: s, pusher: pusher, tracker: tracker, report: report, named: named}
	if err := p.tree(ctx, target); err != nil {
		return Pushed{}, err
	}
	if err := p.remember(ctx); err != nil {
		s.log.Warn("cannot note where an image was pushed to", "image", named.String(), "error", err)
	}
	report.line(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", named.Tag(), target.Digest, target.Size)})
	return Pushed{Tag: named.Tag(), Digest: target.Digest, Size: target.Size}, nil
}

// pushTarget returns what of an image to push: one platform's manifest, or all of
// it. Of an index of which one platform was pulled, that one goes alone: a
// registry takes no index whose manifests it lacks.
func (s *Store) pushTarget(ctx context.Context, target ocispec.Descriptor, platform *ocispec.Platform, report *reporter) (ocispec.Descriptor, error) {
	img, err := s.GetPlatform(ctx, target.Digest.String(), platform)
	if err != nil {
		return target, err
	}
	if platform != nil {
		return img.Manifest, nil
	}
	var here []ocispec.Descriptor
	whole := true
	for _, m := range img.Manifests {
		whole = whole && m.Available
		if m.Available && !m.Attestation {
			here = append(here, m.Descriptor)
		}
	}
	if whole || len(here) != 1 {
		return target, nil
	}
	report.line(Progress{Status: "Not all platforms of the image are here: pushing the one that is"})
	return here[0], nil
}

// push sends the blobs of one image.
type push struct {
	store   *Store
	pusher  remotes.Pusher
	tracker docker.StatusTracker
	report  *reporter
	named   reference.Named
	sent    []ocispec.Descriptor // by tree
}

// tree sends what desc refers to, then desc itself: a registry takes a manifest
// only when it has all that it names. What an index names and the store lacks is
// an error, for the registry would refuse it.
func (p *push) tree(ctx context.Context, desc ocispec.Descriptor) error {
	var manifests, blobs []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	children := checkChildren(images.ChildrenHandler(p.store.content))
	collect := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if seen[d.Digest] {
			return nil, images.ErrSkipDesc
		}
		seen[d.Digest] = true
		if _, err := p.store.content.Info(ctx, d.Digest); err != nil {
			return nil, p.missing(d, err)
		}
		if images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType) {
			manifests = append(manifests, d)
		} else {
			blobs = append(blobs, d)
		}
		return children(ctx, d)
	})
	if err := images.Walk(ctx, collect, desc); err != nil {
		return err
	}
	for _, b := range blobs {
		if images.IsLayerType(b.MediaType) {
			p.report.layer(b.Digest, "Preparing", 0, 0)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxUploads)
	for _, b := range blobs {
		group.Go(func() error { return p.blob(groupCtx, b) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := len(manifests) - 1; i >= 0; i-- { // parents come first in the list
		if err := p.blob(ctx, manifests[i]); err != nil {
			return err
		}
	}
	p.sent = append(blobs, manifests...)
	return nil
}

// remember notes of what was sent in which repository the registry has it: a push to
// another one mounts it from there.
func (p *push) remember(ctx context.Context) error {
	source, err := docker.AppendDistributionSourceLabel(p.store.content, p.named.String())
	if err != nil {
		return err
	}
	for _, d := range p.sent {
		if _, err := source(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (p *push) missing(d ocispec.Descriptor, err error) error {
	if !errdefs.IsNotFound(err) {
		return err
	}
	return fail(errdefs.ErrFailedPrecondition, "cannot push %s: it holds a platform that was not pulled (%s is missing): name one with --platform, or pull all", reference.FamiliarString(p.named), d.Digest)
}

// blob sends one blob or manifest and reports it when it is a layer.
func (p *push) blob(ctx context.Context, desc ocispec.Descriptor) error {
	status := func(text string, at, total int64) {
		if images.IsLayerType(desc.MediaType) {
			p.report.layer(desc.Digest, text, at, total)
		}
	}
	err := p.send(ctx, desc, func(at int64) { status("Pushing", at, desc.Size) })
	switch {
	case err == nil:
		status("Pushed", 0, 0)
		return nil
	case !errdefs.IsAlreadyExists(err):
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return registry.Explain(err, p.named, registry.Push)
	}
	done, statusErr := p.tracker.GetStatus(remotes.MakeRefKey(ctx, desc))
	if statusErr == nil && done.MountedFrom != "" {
		status("Mounted from "+inRegistry(done.MountedFrom), 0, 0)
	} else {
		status("Layer already exists", 0, 0)
	}
	return nil
}

// inRegistry is a repository's name without its registry, which is the push's own.
func inRegistry(repository string) string {
	if named, err := reference.ParseNormalizedNamed(repository); err == nil {
		return reference.Path(named)
	}
	return repository
}

func (p *push) send(ctx context.Context, desc ocispec.Descriptor, progress func(int64)) error {
	desc = p.withSource(ctx, desc)
	w, err := p.pusher.Push(ctx, desc)
	if err != nil {
		return err
	}
	defer w.Close()
	ra, err := p.store.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	// When the registry asks to begin again, containerd's Copy does so.
	r := &countingSection{SectionReader: io.NewSectionReader(ra, 0, desc.Size), progress: progress}
	return content.Copy(ctx, w, r, desc.Size, desc.Digest)
}

// withSource tells the pusher which repositories of the registry the blob was
// seen in.
func (p *push) withSource(ctx context.Context, desc ocispec.Descriptor) ocispec.Descriptor {
	desc.Annotations = nil // an image's own must not be taken for the store's
	info, err := p.store.content.Info(ctx, desc.Digest)
	if err != nil {
		return desc
	}
	host, _, _ := strings.Cut(reference.Domain(p.named), ":")
	key := labels.LabelDistributionSource + "." + host
	if value := info.Labels[key]; value != "" {
		desc.Annotations = map[string]string{key: value}
	}
	return desc
}

// countingSection reports how far it was read.
type countingSection struct {
	*io.SectionReader
	progress func(at int64)
	at       int64
}

func (c *countingSection) Read(b []byte) (int, error) {
	n, err := c.SectionReader.Read(b)
	c.at += int64(n)
	c.progress(c.at)
	return n, err
}

func (c *countingSection) Seek(offset int64, whence int) (int64, error) {
	at, err := c.SectionReader.Seek(offset, whence)
	c.at = at
	return at, err
}
