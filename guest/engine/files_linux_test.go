package engine

import (
	"testing"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine/record"
)

func TestNameIn(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/", ".": ".", "/.": ".", "./": ".", "/./": ".", "/a": "a", "a/": "a", "a/b/": "b", "a/b/.": ".", "a/./b": "b", "a/..": "/",
	} {
		if got := nameIn(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestCheckWritable(t *testing.T) {
	rec := &record.Record{HostConfig: &apicontainer.HostConfig{ReadonlyRootfs: true}}
	for dest, rw := range map[string]bool{"/rw": true, "/ro": false, "/ro/rw": true} {
		rec.Mounts = append(rec.Mounts, record.Mount{MountPoint: apicontainer.MountPoint{Destination: dest, RW: rw}})
	}
	for path, want := range map[string]string{
		"/rw": "", "/rw/x": "", "/rw/../ro": "mounted volume is marked read-only", "/ro/x": "mounted volume is marked read-only",
		"/ro/rw/": "", "/rwx": "container rootfs is marked read-only", "/": "container rootfs is marked read-only",
	} {
		got := ""
		if err := checkWritable(rec, path); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
