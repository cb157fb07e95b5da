package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/image/inflate"
)

// Load reads the images of an archive, OCI's or docker's, plain or compressed as
// inflate.New takes it. Of each only the wanted platforms are kept, if any are named; an
// image that has none of them is an error; one with a broken layer is not.
func (s *Store) Load(ctx context.Context, r io.Reader, wanted []ocispec.Platform, progress ProgressFunc) ([]Loaded, error) {
	ctx = s.ctx(ctx)
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer s.collectSoon()
	defer done()
	plain, err := inflate.New(ctx, cancelReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("cannot read the archive: %w", err)
	}
	defer plain.Close()
	lease, _ := leases.FromContext(ctx)
	index, err := archive.ImportIndex(ctx, prefixedStore{s.content, lease + "-"}, plain)
	if err != nil {
		return nil, badArchive(ctx, err)
	}
	var top ocispec.Index
	if err := s.readJSON(ctx, index, maxManifest, &top); err != nil {
		return nil, err
	}
	if len(top.Manifests) == 0 {
		return nil, fail(errdefs.ErrInvalidArgument, "the archive holds no image")
	}
	return s.loadAll(ctx, index, top.Manifests, wanted, newReporter(progress))
}

func (s *Store) loadAll(ctx context.Context, index ocispec.Descriptor, manifests []ocispec.Descriptor, wanted []ocispec.Platform, report *reporter) ([]Loaded, error) {
	var loaded []Loaded
	match := s.matcher(nil)
	if len(wanted) > 0 {
		match = platforms.Any(wanted...)
	}
	for _, desc := range manifests {
		if err := checkDescriptor(index, desc); err != nil {
			return loaded, err
		}
		img, broken, err := s.unpackLoaded(ctx, desc, match, len(wanted) > 0, report)
		if err != nil {
			return loaded, err
		}
		if len(wanted) > 0 && img.Manifest.Digest == "" {
			return loaded, fail(errdefs.ErrNotFound, "no images providing the requested platform(s) found: %v", formatAll(wanted))
		}
		l := Loaded{ID: desc.Digest, Broken: broken}
		name := danglingPrefix + desc.Digest.String()
		if named := archiveName(desc); named != nil {
			l.Ref, name = reference.FamiliarString(named), dbName(named)
		}
		target := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, Platform: desc.Platform}
		if err := s.setName(ctx, name, target, nil); err != nil {
			return loaded, err
		}
		loaded = append(loaded, l)
	}
	return loaded, nil
}

// archiveName returns the name an archive has for an image, or nil.
func archiveName(desc ocispec.Descriptor) reference.Named {
	for _, key := range []string{images.AnnotationImageName, "org.opencontainers.image.ref.name"} {
		value := desc.Annotations[key]
		named, err := reference.ParseNormalizedNamed(value)
		if err != nil || key != images.AnnotationImageName && reference.IsNameOnly(named) {
			continue // a bare tag is no name
		}
		return reference.TagNameOnly(named)
	}
	return nil
}

func formatAll(list []ocispec.Platform) []string {
	var out []string
	for _, p := range list {
		out = append(out, platforms.FormatAll(p))
	}
	return out
}

// unpackLoaded unpacks what matches of an image whose blobs came by an archive. An
// index may lack some of its platforms. With only, others are not kept. broken is
// why a layer of an image that is whole cannot be unpacked.
func (s *Store) unpackLoaded(ctx context.Context, desc ocispec.Descriptor, match platforms.MatchComparer, only bool, report *reporter) (_ Image, broken, err error) {
	children := images.ChildrenHandler(s.content)
	children = checkChildren(children)
	if only {
		children = images.FilterPlatforms(children, match)
	}
	children = images.SetChildrenMappedLabels(s.content, children, images.ChildGCLabels)
	here := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := s.content.Info(ctx, d.Digest)
		switch {
		case errdefs.IsNotFound(err) && d.Digest != desc.Digest && images.IsManifestType(d.MediaType):
			return nil, images.ErrSkipDesc
		case err != nil:
			return nil, fail(errdefs.ErrInvalidArgument, "the archive lacks %s", d.Digest)
		case info.Size != d.Size:
			return nil, fail(errdefs.ErrInvalidArgument, "%s has %d bytes where %d are announced", d.Digest, info.Size, d.Size)
		}
		return nil, nil
	})
	// First all that does not take unpacking: what fails then is not a whole image.
	if err := images.Dispatch(ctx, images.Handlers(here, s.checkConfig(), children), nil, desc); err != nil {
		return Image{}, nil, err
	}
	broken = s.unpack(ctx, announce(children, report), match, report, desc)
	if broken != nil && (ctx.Err() != nil || errors.Is(broken, unix.ENOSPC)) {
		return Image{}, nil, broken
	}
	img, err := s.readImage(ctx, desc, match)
	return img, broken, err
}

// badArchive marks what is the archive's fault.
func badArchive(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fail(errdefs.ErrInvalidArgument, "the archive is damaged or no tar: %w", err)
	}
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("cannot load the archive: %w", err)
	}
	return fail(errdefs.ErrInvalidArgument, "cannot load the archive: %w", err)
}

// cancelReader ends with its context.
type cancelReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one Load
	r   io.Reader
}

func (r cancelReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// prefixedStore gives the blobs that one operation writes names of their own.
// Without, two archives with a file of one name would continue each other's.
type prefixedStore struct {
	content.Store
	prefix string
}

func (p prefixedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	opts = append(opts, func(o *content.WriterOpts) error {
		o.Ref = p.prefix + o.Ref
		return nil
	})
	return p.Store.Writer(ctx, opts...)
}

func (p prefixedStore) Abort(ctx context.Context, ref string) error {
	return p.Store.Abort(ctx, p.prefix+ref)
}

// Save returns what writes images to an archive that both OCI's and docker's readers
// take, once it is known that all are here. A repository without a tag means all
// its tags; no platform means all that are here.
func (s *Store) Save(ctx context.Context, refs []string, wanted []ocispec.Platform) (write func(context.Context, io.Writer) error, saved []digest.Digest, err error) {
	ctx = s.ctx(ctx)
	if len(refs) == 0 {
		return nil, nil, fail(errdefs.ErrInvalidArgument, "no image to save was named")
	}
	opts := []archive.ExportOpt{archive.WithSkipMissing(s.content)}
	if len(wanted) == 0 {
		opts = append(opts, archive.WithAllPlatforms(), archive.WithPlatform(s.matcher(nil)))
	} else {
		opts = append(opts, archive.WithPlatform(platforms.Any(wanted...)))
	}
	for _, ref := range refs {
		targets, err := s.exports(ctx, ref, wanted)
		if err != nil {
			return nil, nil, err
		}
		for _, t := range targets {
			var names []string
			if t.name != "" {
				names = []string{t.name}
			}
			opts = append(opts, archive.WithManifest(t.target, names...))
			saved = append(saved, t.target.Digest)
		}
	}
	return func(ctx context.Context, w io.Writer) error {
		ctx = s.ctx(ctx)
		done, err := s.hold(ctx, saved...)
		if err != nil {
			return err
		}
		defer done()
		return archive.Export(ctx, s.content, cancelWriter{ctx, w}, opts...)
	}, saved, nil
}

// export is one image of an archive, and the name it has there.
type export struct {
	target ocispec.Descriptor
	name   string
}

// exports says what of one reference goes into an archive. Of several platforms an
// image must have each.
func (s *Store) exports(ctx context.Context, ref string, wanted []ocispec.Platform) ([]export, error) {
	records, err := s.records(ctx)
	if err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(ref)
	r, matched, findErr := s.find(ctx, ref)
	byID := findErr == nil && matched == ""
	var out []export
	if err == nil && reference.IsNameOnly(named) && !byID {
		for _, r := range records {
			for _, img := range r.names {
				if repository(img.Name) != named.Name() {
					continue
				}
				target, err := s.exported(ctx, r, ref, wanted)
				if err != nil {
					return nil, err
				}
				out = append(out, export{target, img.Name})
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	if findErr != nil {
		return nil, findErr
	}
	target, err := s.exported(ctx, r, ref, wanted)
	if err != nil {
		return nil, err
	}
	if isDangling(matched) || named != nil && refDigest(named) != "" {
		matched = "" // what is named by digest has no tag in the archive
	}
	return []export{{target, matched}}, nil
}

// exported returns what of an image goes into an archive: the manifest of the one
// wanted platform, or all of it.
func (s *Store) exported(ctx context.Context, r record, ref string, wanted []ocispec.Platform) (ocispec.Descriptor, error) {
	target := r.target
	for _, p := range wanted {
		img, err := s.image(ctx, r, &p)
		if err != nil {
			return target, err
		}
		if img.Manifest.Digest == "" {
			return target, missingPlatform(ref, p)
		}
		if len(wanted) == 1 {
			target = img.Manifest
		}
	}
	target.Annotations = maps.Clone(target.Annotations)
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		delete(target.Annotations, key) // they would be taken for names
	}
	return target, nil
}

// cancelWriter ends with its context.
type cancelWriter struct {
	ctx context.Context //nolint:containedctx // lives as long as one Save
	w   io.Writer
}

func (w cancelWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}

// archiveIndex reads the index.json near the start of an OCI archive.
func archiveIndex(r io.Reader) ([]byte, error) {
	tr := tar.NewReader(r)
	for range 8 {
		h, err := tr.Next()
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) == ocispec.ImageIndexFile {
			return io.ReadAll(io.LimitReader(tr, maxManifest))
		}
	}
	return nil, errors.New("index.json is not among the first files")
}
