package mountspec

import (
	"testing"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/record"
)

func TestBinds(t *testing.T) {
	for spec, want := range map[string]struct {
		kind               mount.Type
		source, name, dest string
		rw, anon, nocopy   bool
	}{
		"/a:/b":            {mount.TypeBind, "/a", "", "/b", true, false, false},
		"/a/../c:/b/:ro":   {mount.TypeBind, "/c", "", "/b", false, false, false},
		"vol:/b":           {mount.TypeVolume, "", "vol", "/b", true, false, false},
		"vol:/b:nocopy,ro": {mount.TypeVolume, "", "vol", "/b", false, false, true},
		"/b":               {mount.TypeVolume, "", "", "/b", true, true, false},
		"/a:/b:rshared,z":  {mount.TypeBind, "/a", "", "/b", true, false, false},
		"/a:/b:cached":     {mount.TypeBind, "/a", "", "/b", true, false, false},
	} {
		m, err := parseBind(spec)
		if err != nil || m.Type != want.kind || m.Source != want.source || m.Name != want.name || m.Destination != want.dest ||
			m.RW != want.rw || m.Anon != want.anon || m.NoCopy != want.nocopy {
			t.Errorf("%s: %+v, %v", spec, m, err)
		}
	}
	for _, spec := range []string{"", ":", "a", "a:b", "/a:/", "/a:/b:x", "/a:/b:nocopy", "vol:/b:rshared", ":/b", "a:b:c:d", "-v:/b", "a/b:/c", "x\x00y:/b"} {
		if m, err := parseBind(spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", spec, m, err)
		}
	}
}

func TestMounts(t *testing.T) {
	for what, m := range map[string]mount.Mount{
		"no target":       {Type: mount.TypeVolume},
		"relative target": {Type: mount.TypeVolume, Target: "x"},
		"root":            {Type: mount.TypeTmpfs, Target: "/"},
		"relative bind":   {Type: mount.TypeBind, Source: "x", Target: "/y"},
		"propagation":     {Type: mount.TypeBind, Source: "/x", Target: "/y", BindOptions: &mount.BindOptions{Propagation: "odd"}},
		"tmpfs source":    {Type: mount.TypeTmpfs, Source: "/x", Target: "/y"},
		"volume name":     {Type: mount.TypeVolume, Source: "../x", Target: "/y"},
		"type":            {Type: "npipe", Source: "x", Target: "/y"},
	} {
		if got, err := parseMount(m); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	m, err := parseMount(mount.Mount{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 5, Mode: 0o700}})
	if err != nil || len(m.Options) != 2 || m.Options[0] != "size=5" || m.Options[1] != "mode=700" {
		t.Errorf("tmpfs: %+v, %v", m, err)
	}
}

func TestPlaces(t *testing.T) {
	cfg := &apicontainer.Config{Volumes: map[string]struct{}{"/one": {}, "/two": {}, "/three": {}}}
	h := &apicontainer.HostConfig{Binds: []string{"/x:/one"}}
	lent := []record.Mount{
		{MountPoint: apicontainer.MountPoint{Type: mount.TypeBind, Source: "/lent", Destination: "/one"}},
		{MountPoint: apicontainer.MountPoint{Type: mount.TypeBind, Source: "/lent", Destination: "/two"}},
	}
	all, err := Parse(cfg, h, lent)
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, source := range []string{"/x", "/lent", ""} {
		if all[i].Source != source {
			t.Errorf("mount %d is of %q, want %q", i, all[i].Source, source)
		}
	}
	h.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/one/"}}
	if _, err := Parse(cfg, h, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the same place twice: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/a:/b:ro", "/t", "size=1,exec")
	f.Fuzz(func(t *testing.T, bind, dest, options string) {
		all, err := Parse(&apicontainer.Config{Volumes: map[string]struct{}{dest: {}}},
			&apicontainer.HostConfig{Binds: []string{bind}, Tmpfs: map[string]string{dest: options}}, nil)
		if err != nil {
			return
		}
		for _, m := range all {
			if m.Destination == "" || m.Destination[0] != '/' || m.Destination == "/" {
				t.Errorf("destination %q", m.Destination)
			}
		}
	})
}
