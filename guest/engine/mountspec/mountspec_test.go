package mountspec

import (
	"encoding/json"
	"path/filepath"
	"strings"
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
		"/a:/b":             {mount.TypeBind, "/a", "", "/b", true, false, false},
		"/a/../c:/b/:ro":    {mount.TypeBind, "/c", "", "/b", false, false, false},
		"vol:/b":            {mount.TypeVolume, "", "vol", "/b", true, false, false},
		"vol:/b:nocopy,ro":  {mount.TypeVolume, "", "vol", "/b", false, false, true},
		"/b":                {mount.TypeVolume, "", "", "/b", true, true, false},
		"/a:/b:rshared,z":   {mount.TypeBind, "/a", "", "/b", true, false, false},
		`C:\Users\me:/b:ro`: {mount.TypeBind, `C:\Users\me`, "", "/b", false, false, false},
		"c:/Users/me:/b":    {mount.TypeBind, "c:/Users/me", "", "/b", true, false, false},
		"//c/Users/me:/b":   {mount.TypeBind, "/c/Users/me", "", "/b", true, false, false},
		"/a:/b:cached":      {mount.TypeBind, "/a", "", "/b", true, false, false},
	} {
		m, err := parseBind(spec, "")
		if err != nil || m.Type != want.kind || m.Source != want.source || m.Name != want.name || m.Destination != want.dest ||
			m.RW != want.rw || m.Anon != want.anon || m.NoCopy != want.nocopy {
			t.Errorf("%s: %+v, %v", spec, m, err)
		}
	}
	for _, spec := range []string{"", ":", "a", "a:b", "/a:/", "/a:/b:x", "/a:/b:nocopy", "vol:/b:rshared", ":/b", "a:b:c:d", "-v:/b", "a/b:/c", "x\x00y:/b",
		"/foo:rw", "/a:/b:ro,rw", "/a:/b:shared,slave", "/a:"} {
		if m, err := parseBind(spec, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", spec, m, err)
		}
	}
}

func TestDriveMount(t *testing.T) {
	m, err := parseMount(mount.Mount{Type: mount.TypeBind, Source: `C:\Users\me`, Target: "/b"})
	if err != nil || m.Source != `C:\Users\me` {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestMounts: the errors are docker's, word by word.
func TestMounts(t *testing.T) {
	for want, m := range map[string]mount.Mount{
		`invalid mount config for type "volume": field Target must not be empty`:                                       {Type: mount.TypeVolume},
		`invalid mount config for type "volume": invalid mount path: 'x' mount path must be absolute`:                  {Type: mount.TypeVolume, Target: "x"},
		`invalid mount config for type "tmpfs": invalid specification: destination can't be '/'`:                       {Type: mount.TypeTmpfs, Target: "/x/.."},
		`invalid mount config for type "bind": invalid mount path: 'x' mount path must be absolute`:                    {Type: mount.TypeBind, Source: "x", Target: "/y"},
		`invalid mount config for type "bind": field Source must not be empty`:                                         {Type: mount.TypeBind, Target: "/y"},
		`invalid mount config for type "bind": invalid propagation mode: odd`:                                          {Type: mount.TypeBind, Source: "/x", Target: "/y", BindOptions: &mount.BindOptions{Propagation: "odd"}},
		`invalid mount config for type "bind": field VolumeOptions must not be specified`:                              {Type: mount.TypeBind, Source: "/x", Target: "/y", VolumeOptions: &mount.VolumeOptions{}},
		`invalid mount config for type "tmpfs": field Source must not be specified`:                                    {Type: mount.TypeTmpfs, Source: "/x", Target: "/y"},
		`invalid mount config for type "tmpfs": invalid option: uid`:                                                   {Type: mount.TypeTmpfs, Target: "/y", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"uid", "5"}}}},
		`invalid mount config for type "tmpfs": invalid option array length`:                                           {Type: mount.TypeTmpfs, Target: "/y", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{}}}},
		`invalid mount config for type "volume": must not set Subpath when using anonymous volumes`:                    {Type: mount.TypeVolume, Target: "/y", VolumeOptions: &mount.VolumeOptions{Subpath: "a"}},
		`invalid mount config for type "volume": subpath must be a relative path within the volume`:                    {Type: mount.TypeVolume, Source: "vol", Target: "/y", VolumeOptions: &mount.VolumeOptions{Subpath: "../a"}},
		`invalid mount config for type "image": subpath must be a relative path within the volume`:                     {Type: mount.TypeImage, Source: "img", Target: "/y", ImageOptions: &mount.ImageOptions{Subpath: "/a"}},
		`invalid mount config for type "image": field Source must not be empty`:                                        {Type: mount.TypeImage, Target: "/y"},
		`invalid mount config for type "npipe": mount type unknown`:                                                    {Type: "npipe", Source: "x", Target: "/y"},
		`invalid mount config for type "bind": mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive`: {Type: mount.TypeBind, Source: "/x", Target: "/y", BindOptions: &mount.BindOptions{ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true}},
	} {
		if got, err := parseMount(m); !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("%+v, %v; want %s", got, err, want)
		}
	}
	if m, err := parseMount(mount.Mount{Type: mount.TypeVolume, Source: "../x", Target: "/y"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path as a volume's name: %+v, %v", m, err)
	}
	m, err := parseMount(mount.Mount{Type: mount.TypeTmpfs, Target: "/t",
		TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 5, Mode: 0o700, Options: [][]string{{"exec"}}}})
	if err != nil || strings.Join(m.Options, ",") != "mode=700,size=5,exec" || m.Hidden {
		t.Errorf("tmpfs: %+v, %v", m, err)
	}
	m, err = parseMount(mount.Mount{Type: mount.TypeImage, Source: "img:1", Target: "/i", ImageOptions: &mount.ImageOptions{Subpath: "a/b"}})
	if err != nil || m.Name != "img:1" || m.RW || m.Subpath != "a/b" || m.Propagation != mount.PropagationRPrivate {
		t.Errorf("image: %+v, %v", m, err)
	}
}

func TestVolumesFrom(t *testing.T) {
	for spec, want := range map[string]struct {
		name string
		ro   bool
	}{"c": {"c", false}, "c:ro": {"c", true}, "c:rw,z": {"c", false}} {
		if name, ro, err := ParseVolumesFrom(spec); err != nil || name != want.name || ro != want.ro {
			t.Errorf("%s: %s, %v, %v", spec, name, ro, err)
		}
	}
	for _, spec := range []string{"", "c:x", "c:rshared", "c:nocopy", "c:ro,rw"} {
		if _, _, err := ParseVolumesFrom(spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

func TestPlaces(t *testing.T) {
	cfg := &apicontainer.Config{Volumes: map[string]struct{}{"/one": {}, "/two": {}, "/three": {}}}
	h := &apicontainer.HostConfig{Binds: []string{"/x:/one"}}
	lent := []record.Mount{
		{MountPoint: apicontainer.MountPoint{Type: mount.TypeBind, Source: "/lent", Destination: "/one"}},
		{MountPoint: apicontainer.MountPoint{Type: mount.TypeBind, Source: "/lent earlier", Destination: "/two"}},
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
	f.Add("/a:/b:ro", "/t", "size=1,exec", "c:ro", []byte(`{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"shared"}}`))
	f.Add("vol:/b:nocopy", "/t", "", "c", []byte(`{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"Subpath":"x","DriverConfig":{"Name":"d"}}}`))
	f.Add("/b", "/t", "ro", "", []byte(`{"Type":"image","Source":"i","Target":"/b","ImageOptions":{"Subpath":"x"}}`))
	f.Add("/b", "/t", "ro", "", []byte(`{"Type":"tmpfs","Target":"/b","TmpfsOptions":{"SizeBytes":1,"Mode":7,"Options":[["exec"]]}}`))
	f.Fuzz(func(t *testing.T, bind, dest, options, from string, spec []byte) {
		_, _, _ = ParseVolumesFrom(from)
		h := &apicontainer.HostConfig{Binds: []string{bind}, Tmpfs: map[string]string{dest: options}}
		var m mount.Mount
		if json.Unmarshal(spec, &m) == nil {
			h.Mounts = append(h.Mounts, m)
		}
		all, err := Parse(&apicontainer.Config{Volumes: map[string]struct{}{dest: {}}}, h, nil)
		if err != nil {
			return
		}
		for _, m := range all {
			if m.Destination == "" || m.Destination[0] != '/' || m.Destination == "/" {
				t.Errorf("destination %q", m.Destination)
			}
			if m.Subpath != "" && !filepath.IsLocal(m.Subpath) {
				t.Errorf("subpath %q", m.Subpath)
			}
		}
	})
}
