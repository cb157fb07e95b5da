package image

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

func TestOrigin(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	if o, err := s.Origin(t.Context(), img.ID); err != nil || len(o.Repositories)+len(o.Builds) > 0 {
		t.Errorf("of an archive: %+v, %v", o, err)
	}
	if _, err := s.content.Update(s.ctx(t.Context()), content.Info{Digest: img.ID, Labels: map[string]string{
		"containerd.io/distribution.source.docker.io": "library/a,me/a", "containerd.io/distribution.source.x.test": "A"}},
		"labels.containerd.io/distribution.source.docker.io", "labels.containerd.io/distribution.source.x.test"); err != nil {
		t.Fatal(err)
	}
	first := time.Unix(1000, 0).UTC()
	for i := range maxBuilds + 2 {
		if err := s.MarkBuilt(t.Context(), img.ID, Build{fmt.Sprintf("b%d", i), first.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	o, err := s.Origin(t.Context(), img.ID)
	if err != nil || !slices.Equal(o.Repositories, []string{"docker.io/library/a", "docker.io/me/a"}) {
		t.Errorf("repositories: %+v, %v", o.Repositories, err)
	}
	if n := len(o.Builds); n != maxBuilds || o.Builds[0] != (Build{"b2", first.Add(2 * time.Second)}) || o.Builds[n-1].Ref != fmt.Sprintf("b%d", maxBuilds+1) {
		t.Errorf("builds: %+v", o.Builds)
	}
	if err := s.MarkBuilt(t.Context(), digest.FromString("absent"), Build{"x", first}); err == nil {
		t.Error("what is not there was marked")
	}
}
