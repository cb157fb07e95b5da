package image

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Origin is where an image, or one manifest of it, came from.
type Origin struct {
	Repositories []string // it was pulled from or pushed to: "docker.io/library/busybox"
	Builds       []Build  // that made it, oldest first
}

// Build is a build by its reference in the builder's history.
type Build struct {
	Ref string
	At  time.Time
}

const (
	buildLabel = "moby/build.ref." // docker's
	maxBuilds  = 16                // of one image that are remembered: the last
)

// Origin says where what has a digest came from, as far as is known.
func (s *Store) Origin(ctx context.Context, dgst digest.Digest) (Origin, error) {
	info, err := s.content.Info(s.ctx(ctx), dgst)
	if err != nil {
		return Origin{}, err
	}
	return originOf(info.Labels), nil
}

func originOf(given map[string]string) (o Origin) {
	for key, value := range given {
		if ref, ok := strings.CutPrefix(key, buildLabel); ok {
			var v buildValue
			if json.Unmarshal([]byte(value), &v) == nil {
				o.Builds = append(o.Builds, Build{ref, v.CreatedAt})
			}
		}
		registry, ok := strings.CutPrefix(key, labels.LabelDistributionSource+".")
		if !ok {
			continue
		}
		for repo := range strings.SplitSeq(value, ",") {
			if named, err := reference.ParseNormalizedNamed(registry + "/" + repo); err == nil {
				o.Repositories = append(o.Repositories, named.Name())
			}
		}
	}
	slices.Sort(o.Repositories)
	o.Repositories = slices.Compact(o.Repositories)
	slices.SortFunc(o.Builds, func(a, b Build) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Ref, b.Ref)) })
	return o
}

type buildValue struct {
	CreatedAt time.Time `json:"createdAt"`
}

// MarkBuilt remembers that a build made what has a digest.
func (s *Store) MarkBuilt(ctx context.Context, dgst digest.Digest, b Build) error {
	ctx = s.ctx(ctx)
	info, err := s.content.Info(ctx, dgst)
	if err != nil {
		return err
	}
	value, err := json.Marshal(buildValue{b.At})
	if err != nil {
		return err
	}
	change := content.Info{Digest: dgst, Labels: map[string]string{buildLabel + b.Ref: string(value)}}
	fields := []string{"labels." + buildLabel + b.Ref}
	if old := originOf(info.Labels).Builds; len(old) >= maxBuilds {
		for _, gone := range old[:len(old)-maxBuilds+1] {
			fields = append(fields, "labels."+buildLabel+gone.Ref) // without a value: it is removed
		}
	}
	_, err = s.content.Update(ctx, change, fields...)
	return err
}
