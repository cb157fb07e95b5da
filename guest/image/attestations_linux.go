package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// AttestedAnnotation of an attestation's manifest names the manifest that it is
	// about, as BuildKit writes it.
	AttestedAnnotation = "vnd.docker.reference.digest"
	// predicateAnnotation of a layer says what kind of statement it is (in-toto).
	predicateAnnotation = "in-toto.io/predicate-type"
	// maxStatement bounds a statement that is read into memory, in bytes.
	maxStatement = 16 << 20
)

// Statement is one in-toto statement about an image.
type Statement struct {
	Descriptor ocispec.Descriptor
	Predicate  string          // its type
	Body       json.RawMessage // nil unless it was asked for
}

// AttestationOptions select statements.
type AttestationOptions struct {
	Platform   *ocispec.Platform // nil: the store's
	Predicates []string          // types; none means all
	Bodies     bool              // read the statements, too
}

// Attestations returns the statements that came with an image about the manifest of
// one platform. An image without any is no error, one without the platform is.
func (s *Store) Attestations(ctx context.Context, refOrID string, o AttestationOptions) ([]Statement, error) {
	ctx = s.ctx(ctx)
	r, _, err := s.find(ctx, refOrID)
	if err != nil {
		return nil, err
	}
	if !images.IsIndexType(r.target.MediaType) {
		return nil, nil
	}
	platform := o.Platform
	if platform == nil {
		platform = &s.platform
	}
	img, err := s.GetPlatform(ctx, refOrID, platform)
	if err != nil {
		return nil, err
	}
	var out []Statement
	for _, m := range img.Manifests {
		if !m.Attestation || m.Descriptor.Annotations[AttestedAnnotation] != img.Manifest.Digest.String() {
			continue
		}
		var manifest ocispec.Manifest
		if err := s.readJSON(ctx, m.Descriptor, maxManifest, &manifest); err != nil {
			return nil, err
		}
		for _, layer := range manifest.Layers {
			predicate := layer.Annotations[predicateAnnotation]
			if predicate == "" || len(o.Predicates) > 0 && !slices.Contains(o.Predicates, predicate) {
				continue
			}
			st := Statement{Descriptor: layer, Predicate: predicate}
			if o.Bodies {
				if st.Body, err = s.statement(ctx, layer); err != nil {
					return nil, err
				}
			}
			out = append(out, st)
		}
	}
	return out, nil
}

func (s *Store) statement(ctx context.Context, desc ocispec.Descriptor) (json.RawMessage, error) {
	info, err := s.content.Info(ctx, desc.Digest)
	if errdefs.IsNotFound(err) {
		return nil, fail(errdefs.ErrNotFound, "attestation statement %s is not available locally", desc.Digest)
	}
	if err != nil {
		return nil, err
	}
	if info.Size > maxStatement {
		return nil, fail(errdefs.ErrInvalidArgument, "attestation statement %s of %d bytes is too large", desc.Digest, info.Size)
	}
	desc.Size, desc.Data = info.Size, nil
	body, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return nil, fmt.Errorf("failed to read attestation statement %s: %w", desc.Digest, err)
	}
	if !json.Valid(body) {
		return nil, fail(errdefs.ErrInvalidArgument, "attestation statement %s is not valid JSON", desc.Digest)
	}
	return body, nil
}
