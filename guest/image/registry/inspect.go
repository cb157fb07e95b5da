package registry

import (
	"context"
	"encoding/json"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxInspected = 4 << 20 // bytes of a manifest or a config
	maxPlatforms = 1000
)

// Inspect asks a registry what a reference points at, and for which platforms it
// is, without pulling it.
func (c *Client) Inspect(ctx context.Context, named reference.Named, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	r := c.Resolver(ctx, auth, nil)
	name, desc, err := r.Resolve(ctx, named.String())
	if err != nil {
		return desc, nil, Explain(err, named, Pull)
	}
	f, err := r.Fetcher(ctx, name)
	if err != nil {
		return desc, nil, err
	}
	list, err := platformsOf(ctx, f, desc)
	return desc, list, Explain(err, named, Pull)
}

func platformsOf(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) ([]ocispec.Platform, error) {
	var top struct {
		Config    ocispec.Descriptor   `json:"config"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := fetchJSON(ctx, f, desc, &top); err != nil {
		return nil, err
	}
	list := []ocispec.Platform{}
	if images.IsIndexType(desc.MediaType) {
		for _, m := range top.Manifests {
			if m.Platform != nil && len(list) < maxPlatforms {
				list = append(list, *m.Platform)
			}
		}
		return list, nil
	}
	if !images.IsConfigType(top.Config.MediaType) || top.Config.Digest.Validate() != nil {
		return list, nil
	}
	var p ocispec.Platform
	if err := fetchJSON(ctx, f, top.Config, &p); err != nil {
		return nil, err
	}
	return append(list, platforms.Normalize(p)), nil
}

func fetchJSON(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, v any) error {
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	body, err := io.ReadAll(io.LimitReader(rc, maxInspected))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return say(errdefs.ErrInvalidArgument, "%s %s is not valid: %w", desc.MediaType, desc.Digest, err)
	}
	return nil
}
