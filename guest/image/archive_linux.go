package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Load reads the images of an archive, OCI's or docker's, plain or compressed by
// gzip or zstd.
func (s *Store) Load(ctx context.Context, r io.Reader, progress ProgressFunc) ([]Loaded, error) {
	ctx = s.ctx(ctx)
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer s.collectSoon()
	defer done()
	plain, err := compression.DecompressStream(cancelReader{ctx, r})
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
	return s.loadAll(ctx, index, top.Manifests, newReporter(progress))
}

func (s *Store) loadAll(ctx context.Context, index ocispec.Descriptor, manifests []ocispec.Descriptor, report *reporter) ([]Loaded, error) {
	var loaded []Loaded
	for _, desc := range manifests {
		if err := checkDescriptor(index, desc); err != nil {
			return loaded, err
		}
		if err := s.unpackLoaded(ctx, desc, report); err != nil {
			return loaded, err
		}
		l := Loaded{ID: desc.Digest}
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

// unpackLoaded unpacks an image whose blobs came by an archive. An index may lack
// some of its platforms.
func (s *Store) unpackLoaded(ctx context.Context, desc ocispec.Descriptor, report *reporter) error {
	match := s.matcher(nil)
	children := images.ChildrenHandler(s.content)
	children = checkChildren(children)
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
	if err := s.unpack(ctx, images.Handlers(here, s.checkConfig(), announce(children, report)), match, report, desc); err != nil {
		return err
	}
	_, err := s.readImage(ctx, desc, match)
	return err
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

// Save writes images to an archive that both OCI's and docker's readers take. A
// repository without a tag means all its tags.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string, platform *ocispec.Platform) error {
	ctx = s.ctx(ctx)
	if len(refs) == 0 {
		return fail(errdefs.ErrInvalidArgument, "no image to save was named")
	}
	opts := []archive.ExportOpt{archive.WithPlatform(s.matcher(platform)), archive.WithSkipMissing(s.content)}
	if platform == nil {
		opts = append(opts, archive.WithAllPlatforms())
	}
	for _, ref := range refs {
		more, err := s.exports(ctx, ref, platform)
		if err != nil {
			return err
		}
		opts = append(opts, more...)
	}
	return archive.Export(ctx, s.content, cancelWriter{ctx, w}, opts...)
}

// exports says what of one reference goes into an archive.
func (s *Store) exports(ctx context.Context, ref string, platform *ocispec.Platform) ([]archive.ExportOpt, error) {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		var opts []archive.ExportOpt
		all, err := s.images.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, img := range all {
			if repository(img.Name) == named.Name() {
				opts = append(opts, archive.WithManifest(img.Target, img.Name))
			}
		}
		if len(opts) > 0 {
			return opts, nil
		}
	}
	r, matched, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	img, err := s.image(ctx, r, platform)
	if err != nil {
		return nil, err
	}
	if platform != nil && img.Manifest.Digest == "" {
		return nil, fail(errdefs.ErrNotFound, "image %s does not hold the platform", ref)
	}
	if matched == "" || isDangling(matched) {
		return []archive.ExportOpt{archive.WithManifest(r.target)}, nil
	}
	return []archive.ExportOpt{archive.WithManifest(r.target, matched)}, nil
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
