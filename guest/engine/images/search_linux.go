package images

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"github.com/berthvm/berth/guest/engine/filter"
)

// Search looks for repositories in Docker's hub, or in the registry that term begins
// with. limit 0 is the default.
func (s *Service) Search(ctx context.Context, term string, limit int, f filter.Set, auth Auth) ([]registry.SearchResult, error) {
	if err := f.Check("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	automated, err := f.Bool("is-automated", false)
	if err != nil {
		return nil, err
	}
	official, err := f.Bool("is-official", false)
	if err != nil {
		return nil, err
	}
	stars := 0
	for _, v := range f.Values("stars") {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'stars=%s'", v))
		}
		stars = max(stars, n)
	}
	out := []registry.SearchResult{}
	if automated { // nothing is any more
		return out, nil
	}
	found, err := s.store.Search(ctx, term, limit, auth)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		if r.Stars >= stars && (!f.Has("is-official") || r.Official == official) {
			out = append(out, registry.SearchResult{Name: r.Name, Description: r.Description, StarCount: r.Stars, IsOfficial: r.Official})
		}
	}
	return out, nil
}
