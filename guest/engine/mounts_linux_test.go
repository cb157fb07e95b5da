package engine

import (
	"slices"
	"testing"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/record"
)

// TestDeviceBind: a container that has one of the machine's devices mounted cannot
// change its mode, which others rely on.
func TestDeviceBind(t *testing.T) {
	for source, want := range map[string]bool{"/dev/null": true, "/run/engine.sock": false} {
		e := &Engine{opts: Options{Socket: "/run/engine.sock", HostSocket: "/run/engine.sock"}}
		m := record.Mount{MountPoint: apicontainer.MountPoint{Type: mount.TypeBind, Source: source, Destination: "/x", RW: true}}
		s, _, err := e.mountOf(t.Context(), nil, m)
		if err != nil || slices.Contains(s.Options, "ro") != want {
			t.Errorf("%s: %v, %v", source, s.Options, err)
		}
	}
}
