package enginetest

import (
	"context"
	"log/slog"
	"testing"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/builds"
	imageservice "github.com/berthvm/berth/guest/engine/images"
	"github.com/berthvm/berth/guest/engine/volumes"
	"github.com/berthvm/berth/guest/image"
	"github.com/berthvm/berth/guest/volume"
)

// Images returns the service of a real image store, which is empty: an engine's
// own images in a World are not in it.
func Images(t testing.TB, e *engine.Engine) *imageservice.Service {
	t.Helper()
	store, err := image.Open(context.Background(), image.Options{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	builtin := make(chan struct{})
	close(builtin)
	return imageservice.New(store, e, builtin)
}

// Volumes returns the service of a real store of volumes.
func Volumes(t testing.TB, e *engine.Engine) *volumes.Service {
	t.Helper()
	store, err := volume.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return volumes.New(store, e)
}

// Builds returns the service of a builder that has no images to build from and no
// cache.
func Builds(t testing.TB, e *engine.Engine) *builds.Service {
	t.Helper()
	dir := t.TempDir()
	b, err := build.New(build.Options{Log: slog.New(slog.DiscardHandler), Root: dir + "/root", RunDir: dir + "/run"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return builds.New(b, e)
}
