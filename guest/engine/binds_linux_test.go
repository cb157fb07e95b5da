package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
	"github.com/berthvm/berth/guest/engine/hostpath"
)

// sharing is a world whose host shares /home/u, which is the returned directory.
func sharing(t *testing.T) (*enginetest.World, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "src", "out": "/etc"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	w := enginetest.New(t)
	w.Folders = hostpath.Map{{Path: "/home/u", Dir: dir}}
	return w, dir
}

func TestBinds(t *testing.T) {
	w, dir := sharing(t)
	e := w.Engine()
	id := create(t, e, "", &apicontainer.HostConfig{
		Binds: []string{"/home/u/src:/a", "/home/u/link:/b:ro", "/home/u/new/dir:/c", "/var/run/docker.sock:/d",
			"/home/u/.berth/docker.sock:/e", "/dev/null:/g"},
		Mounts: []mount.Mount{{Type: mount.TypeBind, Source: "/home/u", Target: "/f"}},
	}, "sleep")
	start(t, e, id)
	for dest, want := range map[string]string{
		"/a": dir + "/src", "/b": dir + "/src", "/c": dir + "/new/dir", "/d": "/machine/docker.sock", "/e": "/machine/docker.sock", "/f": dir, "/g": "/dev/null",
	} {
		if got := w.Bound(dest); got != want {
			t.Errorf("%s is %s, want %s", dest, got, want)
		}
	}
	r, err := e.Inspect(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, m := range r.Mounts {
		sources = append(sources, m.Source)
	}
	const want = "/home/u/src /home/u/link /home/u/new/dir /var/run/docker.sock /home/u/.berth/docker.sock /home/u /dev/null"
	if got := strings.Join(sources, " "); got != want {
		t.Errorf("inspect shows %s, want what the user wrote: %s", got, want)
	}
}

func TestBindsRefused(t *testing.T) {
	w, dir := sharing(t)
	e := w.Engine()
	const share, missing = `add it to "shares"`, `invalid mount config for type "bind": bind source path does not exist: `
	for name, c := range map[string]struct {
		hc   apicontainer.HostConfig
		want []string
	}{
		"outside":           {apicontainer.HostConfig{Binds: []string{"/srv/x:/x"}}, []string{missing + "/srv/x", share}},
		"the machine's own": {apicontainer.HostConfig{Binds: []string{"/:/x"}}, []string{missing + "/", share}},
		"its devices":       {apicontainer.HostConfig{Binds: []string{"/dev/vda:/x"}}, []string{missing + "/dev/vda", share}},
		"a link out":        {apicontainer.HostConfig{Binds: []string{"/home/u/out:/x"}}, []string{missing + "/home/u/out", "/etc", share}},
		"dotdot":            {apicontainer.HostConfig{Binds: []string{"/home/u/../../etc:/x"}}, []string{missing + "/etc", share}},
		"mount, missing": {apicontainer.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: "/home/u/none", Target: "/x"}}},
			[]string{missing + "/home/u/none"}},
		"mount, outside": {apicontainer.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: "/etc", Target: "/x"}}},
			[]string{missing + "/etc", share}},
	} {
		_, _, err := e.Create(ctx, engine.CreateOptions{HostConfig: &c.hc, Config: &apicontainer.Config{Image: "img"}})
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

// TestBindIsLookedUpAtStart swaps the source for a link to the machine's tree
// between create and start.
func TestBindIsLookedUpAtStart(t *testing.T) {
	w, dir := sharing(t)
	e := w.Engine()
	id := create(t, e, "", &apicontainer.HostConfig{Binds: []string{"/home/u/src:/a"}}, "sleep")
	if err := os.Rename(filepath.Join(dir, "out"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "src")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "src")); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx, id); err == nil || !strings.Contains(err.Error(), `add it to "shares"`) {
		t.Errorf("start: %v, bound %q", err, w.Bound("/a"))
	}
}
