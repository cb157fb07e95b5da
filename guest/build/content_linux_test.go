package build

import (
	"context"
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// labelStore is a content store that holds one blob and counts its changes.
type labelStore struct {
	content.Store
	info    content.Info
	changes int
}

func (l *labelStore) Info(context.Context, digest.Digest) (content.Info, error) { return l.info, nil }

func (l *labelStore) Update(_ context.Context, info content.Info, _ ...string) (content.Info, error) {
	l.changes++
	return info, nil
}

func TestUpdateOfWhatIsThere(t *testing.T) {
	has := map[string]string{"a": "1", "b": "", "": "x"}
	for _, c := range []struct {
		name   string
		set    map[string]string
		fields []string
		writes bool
	}{
		{"the same", map[string]string{"a": "1"}, []string{"labels.a"}, false},
		{"the same, empty", nil, []string{"labels.b"}, false},
		{"both", map[string]string{"a": "1", "b": ""}, []string{"labels.a", "labels.b"}, false},
		{"other fields are not looked at", map[string]string{"a": "1", "c": "3"}, []string{"labels.a"}, false},
		{"another value", map[string]string{"a": "2"}, []string{"labels.a"}, true},
		{"removed", nil, []string{"labels.a"}, true},
		{"a new one", map[string]string{"c": "3"}, []string{"labels.c"}, true},
		{"a new one, empty", nil, []string{"labels.c"}, true},
		{"one of two", map[string]string{"a": "1", "b": "2"}, []string{"labels.a", "labels.b"}, true},
		{"all labels", has, []string{"labels"}, true},
		{"everything", has, nil, true},
		{"no label", has, []string{"size"}, true},
	} {
		l := &labelStore{info: content.Info{Digest: digest.FromString("x"), Labels: maps.Clone(has)}}
		_, err := storeContent{l}.Update(t.Context(), content.Info{Digest: l.info.Digest, Labels: c.set}, c.fields...)
		if err != nil || (l.changes == 1) != c.writes {
			t.Errorf("%s: %d changes, error %v", c.name, l.changes, err)
		}
	}
}
