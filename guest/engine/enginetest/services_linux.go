package enginetest

import (
	"context"
	"log/slog"
	"testing"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/builds"
	imageservice "github.com/berthvm/berth/guest/engine/images"
	networkservice "github.com/berthvm/berth/guest/engine/networks"
	"github.com/berthvm/berth/guest/engine/volumes"
	"github.com/berthvm/berth/guest/image"
	"github.com/berthvm/berth/guest/network"
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

// Networks returns the service of a real manager of networks, which changes nothing
// in the kernel: an engine's containers in a World are attached to none of them.
func Networks(t testing.TB, e *engine.Engine) *networkservice.Service {
	t.Helper()
	dir := t.TempDir()
	m, err := network.Open(context.Background(), network.Options{StateDir: dir + "/state", RunDir: dir + "/run", NetNSDir: dir + "/ns", Uplink: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return networkservice.New(m, e)
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
