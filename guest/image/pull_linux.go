package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthvm/berth/guest/image/registry"
)

const (
	maxDownloads = 4 // blobs of one pull at once
	maxUnpacks   = 2 // layers of one pull at once
	pullPrefix   = "pull-"
)

// Pull fetches and unpacks an image, or every tag of a repository. What is here
// already is not fetched again, and what a broken pull fetched is not lost.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) ([]Image, error) {
	ctx = s.ctx(ctx)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fail(errdefs.ErrInvalidArgument, "%s", err)
	}
	report := newReporter(opts.Progress)
	if !opts.All {
		img, err := s.pullOne(ctx, reference.TagNameOnly(named), opts, report)
		if err != nil {
			return nil, err
		}
		return []Image{img}, nil
	}
	if !reference.IsNameOnly(named) {
		return nil, fail(errdefs.ErrInvalidArgument, "tag can't be used with --all-tags/-a")
	}
	tags, err := s.registry.Tags(ctx, named, opts.Auth)
	if err != nil {
		return nil, err
	}
	var pulled []Image
	for _, tag := range tags {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return pulled, fail(errdefs.ErrInvalidArgument, "registry names a tag %q: %w", tag, err)
		}
		img, err := s.pullOne(ctx, tagged, opts, report)
		if err != nil {
			return pulled, err
		}
		pulled = append(pulled, img)
	}
	return pulled, nil
}

func (s *Store) pullOne(ctx context.Context, named reference.Named, opts PullOptions, report *reporter) (Image, error) {
	id := "latest"
	if d := refDigest(named); d != "" {
		id = d.String()
	} else if tagged, ok := named.(reference.Tagged); ok {
		id = tagged.Tag()
	}
	old, _ := s.images.Get(ctx, dbName(named))
	if found, err := s.pullBuiltin(ctx, named, opts.Platform, report); found || err != nil {
		return s.pulled(ctx, named, old.Target.Digest, opts, report, err)
	}
	ctx, done, err := s.pullLease(ctx, named)
	if err != nil {
		return Image{}, err
	}
	target, err := s.fetchImage(ctx, named, opts, report, func() {
		report.line(Progress{ID: id, Status: "Pulling from " + reference.FamiliarName(named)})
	})
	if err == nil {
		err = s.setName(ctx, dbName(named), target, nil)
	}
	done(err)
	return s.pulled(ctx, named, old.Target.Digest, opts, report, err)
}

// pulled ends a pull: it says what came of it.
func (s *Store) pulled(ctx context.Context, named reference.Named, old digest.Digest, opts PullOptions, report *reporter, err error) (Image, error) {
	if err != nil {
		return Image{}, err
	}
	s.forget()
	img, err := s.GetPlatform(ctx, dbName(named), opts.Platform)
	if err != nil {
		return Image{}, err
	}
	report.line(Progress{Status: "Digest: " + img.ID.String()})
	status := "Status: Downloaded newer image for "
	if old == img.ID {
		status = "Status: Image is up to date for "
	}
	report.line(Progress{Status: status + reference.FamiliarString(named)})
	return img, nil
}

// pullLease protects a pull. A pull that breaks for a passing reason leaves its
// lease for a while, so that its repetition, which takes the lease over, finds
// what was fetched.
func (s *Store) pullLease(ctx context.Context, named reference.Named) (context.Context, func(error), error) {
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return ctx, nil, err
	}
	id := fmt.Sprintf("%s%x", pullPrefix, sha256.Sum256([]byte(named.String())))
	return ctx, func(pullErr error) {
		defer done()
		outer := context.WithoutCancel(ctx)
		kept := leases.Lease{ID: id}
		s.release(outer, kept)
		if pullErr == nil || !mayPass(pullErr) {
			s.collectSoon()
			return
		}
		if err := s.moveLease(outer, kept); err != nil {
			s.log.Warn("cannot keep a broken pull's blobs", "ref", named, "error", err)
		}
	}, nil
}

// moveLease makes an expiring lease of what ctx's lease holds.
func (s *Store) moveLease(ctx context.Context, kept leases.Lease) error {
	own, _ := leases.FromContext(ctx)
	resources, err := s.leases.ListResources(ctx, leases.Lease{ID: own})
	if err != nil {
		return err
	}
	resources = slices.DeleteFunc(resources, func(r leases.Resource) bool { return r.Type != "content" && r.Type != "ingests" })
	if len(resources) == 0 {
		return nil
	}
	if _, err := s.leases.Create(ctx, leases.WithID(kept.ID), leases.WithExpiration(resumeTime)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	for _, r := range resources {
		if err := s.leases.AddResource(ctx, kept, r); err != nil {
			return err
		}
	}
	return nil
}

// mayPass tells errors after which the same pull may succeed: it was cancelled, or
// the registry could not be reached.
func mayPass(err error) bool {
	var op *net.OpError
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errdefs.IsUnavailable(err) || errors.As(err, &op)
}

// dropBroken gives up what broken pulls left for their repetition.
func (s *Store) dropBroken(ctx context.Context) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		if strings.HasPrefix(l.ID, pullPrefix) {
			s.release(ctx, l)
		}
	}
	return nil
}

// fetchImage resolves a reference, fetches its content and unpacks it.
func (s *Store) fetchImage(ctx context.Context, named reference.Named, opts PullOptions, report *reporter, resolved func()) (ocispec.Descriptor, error) {
	resolver := s.registry.Resolver(ctx, opts.Auth, nil)
	_, target, err := resolver.Resolve(ctx, resolverRef(named))
	if err != nil {
		return ocispec.Descriptor{}, registry.Explain(err, named, registry.Pull)
	}
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return ocispec.Descriptor{}, fail(errdefs.ErrInvalidArgument, "%s is not an image: unsupported media type %q", reference.FamiliarString(named), target.MediaType)
	}
	resolved()
	fetcher, err := resolver.Fetcher(ctx, resolverRef(named))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	f := &fetch{store: s, fetcher: fetcher, report: report, named: named}
	match := s.matcher(opts.Platform)
	children := images.ChildrenHandler(s.content)
	children = checkChildren(children)
	children = images.SetChildrenMappedLabels(s.content, children, images.ChildGCLabels)
	children = onePlatform(children, match)
	source, err := docker.AppendDistributionSourceLabel(s.content, named.String())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	handler := images.Handlers(images.HandlerFunc(f.handle), s.checkConfig(), ignoreMissing(source), announce(children, report))
	err = s.unpack(ctx, handler, match, report, target)
	if err != nil {
		return ocispec.Descriptor{}, s.explainPlatform(err, named, opts.Platform)
	}
	return target, s.checkImage(ctx, target, opts.Platform, named)
}

// resolverRef is a reference as containerd's resolver wants it: with the digest
// in place of the tag when there are both.
func resolverRef(named reference.Named) string {
	if d := refDigest(named); d != "" {
		return named.Name() + "@" + d.String()
	}
	return named.String()
}

func (s *Store) explainPlatform(err error, named reference.Named, platform *ocispec.Platform) error {
	if !errors.Is(err, errNoManifest) {
		return err
	}
	p := s.platform
	if platform != nil {
		p = *platform
	}
	return fail(errdefs.ErrNotFound, "no matching manifest for %s in the manifest list entries of %s", platforms.Format(p), reference.FamiliarString(named))
}

// checkImage makes sure that what was fetched can be used.
func (s *Store) checkImage(ctx context.Context, target ocispec.Descriptor, platform *ocispec.Platform, named reference.Named) error {
	img, err := s.readImage(ctx, target, s.matcher(platform))
	if err != nil {
		return err
	}
	if img.Manifest.Digest == "" {
		return s.explainPlatform(errNoManifest, named, platform)
	}
	return nil
}

var errNoManifest = errors.New("no manifest for the platform")

// checkConfig refuses configs that cannot be right, before anything is unpacked.
func (s *Store) checkConfig() images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsConfigType(desc.MediaType) {
			return nil, nil
		}
		bad := func(format string, args ...any) error {
			return fail(errdefs.ErrInvalidArgument, "image config %s: %s", desc.Digest, fmt.Sprintf(format, args...))
		}
		var spec dockerspec.DockerOCIImage
		if err := s.readJSON(ctx, desc, maxConfig, &spec); err != nil {
			return nil, err
		}
		if t := spec.RootFS.Type; t != "" && t != "layers" {
			return nil, bad("rootfs of type %q: want layers", t)
		}
		for _, id := range spec.RootFS.DiffIDs {
			if err := id.Validate(); err != nil {
				return nil, bad("layer %q: %s", id, err)
			}
		}
		return nil, nil
	}
}

// onePlatform lets only the best matching manifest of an index through.
func onePlatform(h images.HandlerFunc, match platforms.MatchComparer) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h(ctx, desc)
		if err != nil || !images.IsIndexType(desc.MediaType) {
			return children, err
		}
		var best *ocispec.Descriptor
		for i, c := range children {
			switch {
			case c.Annotations[attestationAnnotation] != "" || c.Platform != nil && !match.Match(*c.Platform):
			case best == nil || best.Platform == nil || c.Platform != nil && match.Less(*c.Platform, *best.Platform):
				best = &children[i]
			}
		}
		if best == nil {
			return nil, errNoManifest
		}
		return []ocispec.Descriptor{*best}, nil
	}
}

// announce reports the layers of each manifest as soon as they are known.
func announce(h images.HandlerFunc, report *reporter) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h(ctx, desc)
		if err == nil {
			for _, c := range children {
				if images.IsLayerType(c.MediaType) {
					report.layer(c.Digest, "Pulling fs layer", 0, 0)
				}
			}
		}
		return children, err
	}
}

// ignoreMissing lets a label that cannot be set not fail a pull.
func ignoreMissing(h images.HandlerFunc) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h(ctx, desc)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		return children, err
	}
}

// checkChildren refuses manifests that are not images' and descriptors that
// cannot be right, before anything they name is fetched.
func checkChildren(h images.HandlerFunc) images.HandlerFunc {
	var mu sync.Mutex
	depth := map[string]int{}
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h(ctx, desc)
		if err != nil {
			return nil, badManifest(desc, err)
		}
		mu.Lock()
		defer mu.Unlock()
		at := depth[desc.Digest.String()]
		layers := 0
		for i, c := range children {
			if err := checkDescriptor(desc, c); err != nil {
				return nil, err
			}
			if images.IsLayerType(c.MediaType) {
				layers++
			}
			// Foreign layers are fetched from the registry or not at all.
			children[i].URLs, children[i].Data = nil, nil
			if images.IsIndexType(c.MediaType) || images.IsManifestType(c.MediaType) {
				depth[c.Digest.String()] = at + 1
			}
		}
		if at > maxNesting {
			return nil, fail(errdefs.ErrInvalidArgument, "manifest %s: index within index, more than %d deep", desc.Digest, maxNesting)
		}
		if layers > maxLayers {
			return nil, fail(errdefs.ErrInvalidArgument, "manifest %s: %d layers, more than %d", desc.Digest, layers, maxLayers)
		}
		return children, nil
	}
}

func badManifest(desc ocispec.Descriptor, err error) error {
	if errdefs.IsNotFound(err) || errors.Is(err, context.Canceled) || errors.Is(err, images.ErrSkipDesc) {
		return err
	}
	return fail(errdefs.ErrInvalidArgument, "manifest %s is not valid: %s", desc.Digest, jsonProblem(err))
}

func checkDescriptor(parent, c ocispec.Descriptor) error {
	bad := func(format string, args ...any) error {
		return fail(errdefs.ErrInvalidArgument, "manifest %s: %s", parent.Digest, fmt.Sprintf(format, args...))
	}
	if err := c.Digest.Validate(); err != nil {
		return bad("digest %q: %s", c.Digest, err)
	}
	isManifest := images.IsManifestType(c.MediaType) || images.IsIndexType(c.MediaType)
	isConfig := images.IsConfigType(c.MediaType)
	// What is attested about an image has no configuration (OCI image spec 1.1, "Guidance for an Empty Descriptor").
	isEmpty := c.MediaType == ocispec.MediaTypeEmptyJSON && parent.Annotations[attestationAnnotation] != ""
	switch {
	case c.Size < 0:
		return bad("%s has a size of %d bytes", c.Digest, c.Size)
	case isManifest && c.Size > maxManifest, isConfig && c.Size > maxConfig:
		return bad("%s of %d bytes is too large", c.MediaType, c.Size)
	case images.IsIndexType(parent.MediaType) && !isManifest:
		return bad("an index cannot hold %q", c.MediaType)
	case images.IsManifestType(parent.MediaType) && !isConfig && !isEmpty && !images.IsLayerType(c.MediaType) && !images.IsAttestationType(c.MediaType):
		return bad("not an image: unsupported media type %q", c.MediaType)
	}
	return nil
}

// fetch brings the blobs of one pull into the store.
type fetch struct {
	store   *Store
	fetcher remotes.Fetcher
	report  *reporter
	named   reference.Named
}

// maxStarts is how often a blob is begun without a byte gained.
const maxStarts = 2

// handle is an images.Handler that fetches one blob.
func (f *fetch) handle(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	layer := images.IsLayerType(desc.MediaType)
	// The lease comes before the look: what is there now is not collected after.
	if err := f.adopt(ctx, desc); err != nil {
		return nil, err
	}
	if _, err := f.store.content.Info(ctx, desc.Digest); err == nil {
		if layer {
			f.report.exists(desc.Digest)
		}
		return nil, nil
	}
	var at int64
	fresh := false
	for starts := 0; ; {
		began, reached, err := f.once(ctx, desc, layer)
		if err == nil {
			if layer {
				f.report.layer(desc.Digest, "Download complete", desc.Size, desc.Size)
			}
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		switch {
		case errdefs.IsFailedPrecondition(err) && began > 0 && !fresh:
			// What an earlier attempt fetched may have been wrong. It is gone now.
			at, starts, fresh = 0, 0, true
		case !errdefs.IsUnavailable(err):
			return nil, err
		case reached > at:
			at, starts = reached, 0
		default:
			if starts++; starts >= maxStarts {
				return nil, err
			}
		}
		if layer {
			f.report.layer(desc.Digest, "Retrying", at, desc.Size)
		}
	}
}

// adopt puts a blob, whether it is in the store or not, under the pull's lease.
func (f *fetch) adopt(ctx context.Context, desc ocispec.Descriptor) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return f.store.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: desc.Digest.String(), Type: "content"})
}

// once fetches a blob from where the last attempt ended; it returns where it began
// and how far it got. An error of the kind ErrFailedPrecondition means that what
// came is not the blob; nothing of it is left.
func (f *fetch) once(ctx context.Context, desc ocispec.Descriptor, layer bool) (began, reached int64, err error) {
	ref := remotes.MakeRefKey(ctx, desc)
	w, err := content.OpenWriter(ctx, f.store.content, content.WithRef(ref), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer w.Close()
	status, err := w.Status()
	if err != nil {
		return 0, 0, err
	}
	began = status.Offset
	n, err := f.copy(ctx, w, desc, began, layer)
	reached = began + n
	if err == nil {
		if layer {
			f.report.layer(desc.Digest, "Verifying Checksum", 0, 0)
		}
		err = w.Commit(ctx, desc.Size, desc.Digest)
	}
	switch {
	case errdefs.IsAlreadyExists(err):
		return began, reached, nil
	case errdefs.IsFailedPrecondition(err):
		return began, reached, f.spoiled(ctx, w, ref, desc, err)
	}
	return began, reached, err
}

// spoiled drops what was fetched of a blob that is not what its digest says.
func (f *fetch) spoiled(ctx context.Context, w content.Writer, ref string, desc ocispec.Descriptor, err error) error {
	w.Close()
	if abortErr := f.store.content.Abort(context.WithoutCancel(ctx), ref); abortErr != nil && !errdefs.IsNotFound(abortErr) {
		err = errors.Join(err, abortErr)
	}
	return fmt.Errorf("filesystem layer verification failed for digest %s: %w", desc.Digest, err)
}

func (f *fetch) copy(ctx context.Context, w content.Writer, desc ocispec.Descriptor, offset int64, layer bool) (int64, error) {
	if offset > desc.Size {
		return 0, fail(errdefs.ErrFailedPrecondition, "more than %d bytes came", desc.Size)
	}
	if offset == desc.Size && offset > 0 {
		return 0, nil
	}
	rc, err := f.fetcher.Fetch(ctx, desc)
	if err != nil {
		return 0, f.explain(desc, err)
	}
	defer rc.Close()
	n, err := copyAt(ctx, w, rc, offset, desc.Size, func(at int64) {
		if layer {
			f.report.layer(desc.Digest, "Downloading", at, desc.Size)
		}
	})
	return n, f.explain(desc, err)
}

func (f *fetch) explain(desc ocispec.Descriptor, err error) error {
	if errdefs.IsNotFound(err) {
		return fail(errdefs.ErrNotFound, "registry %s does not have %s, which %s needs", reference.Domain(f.named), desc.Digest, reference.FamiliarString(f.named))
	}
	return registry.Explain(err, f.named, registry.Pull)
}

// unpack fetches by handler and unpacks what matches, layers in parallel.
func (s *Store) unpack(ctx context.Context, handler images.Handler, match platforms.MatchComparer, report *reporter, target ocispec.Descriptor) error {
	unpacker, err := s.unpacker(ctx, match, report)
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, unpacker.Unpack(handler), semaphore.NewWeighted(maxDownloads), target)
	if err != nil {
		return layerProblem(firstError(err, unpacker.stop()))
	}
	return layerProblem(unpacker.wait())
}

func firstError(errs ...error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil && !errors.Is(err, context.Canceled) })
	if i < 0 {
		return errs[0]
	}
	return errs[i]
}
