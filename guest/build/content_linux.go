package build

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
)

// storeContent is the store's content, in which a label that is there already is not
// written again. BuildKit labels what it finds with where it is from, in each build,
// and each change of the store's records is two writes that wait for the disk.
type storeContent struct{ content.Store }

// Update implements content.Manager.
func (s storeContent) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	if is, err := s.Info(ctx, info.Digest); err == nil && labeled(is, info, fields) {
		return is, nil
	}
	return s.Store.Update(ctx, info, fields...)
}

// labeled reports whether fields name labels alone, and is has want's values of them.
func labeled(is, want content.Info, fields []string) bool {
	for _, field := range fields {
		key, ok := strings.CutPrefix(field, "labels.")
		value, has := is.Labels[key]
		if !ok || !has || value != want.Labels[key] {
			return false
		}
	}
	return len(fields) > 0
}
