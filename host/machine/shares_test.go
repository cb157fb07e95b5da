package machine

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestSharesConfig(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	data := filepath.Join(home, "data")
	c, err := ParseConfig([]byte("shares:\n- ~\n- ~/src\n- {path: "+filepath.ToSlash(data)+", read-only: true}\n- {path: ~/fast, native: true}\n"), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := Shares{{Path: "~"}, {Path: "~/src"}, {Path: filepath.ToSlash(data), ReadOnly: true}, {Path: "~/fast", Native: true}}
	if len(c.Shares) != len(want) {
		t.Fatalf("%+v", c.Shares)
	}
	for i := range want {
		if c.Shares[i] != want[i] {
			t.Errorf("share %d is %+v, want %+v", i, c.Shares[i], want[i])
		}
	}
	// What is shown can be read again.
	body, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseConfig(body, "f")
	if err != nil || len(again.Shares) != 4 || again.Shares[2] != want[2] || again.Shares[3] != want[3] {
		t.Errorf("%+v, %v, read from\n%s", again.Shares, err, body)
	}
	if c, err := ParseConfig([]byte("shares: []\n"), "f"); err != nil || len(c.Shares) != 0 {
		t.Errorf("an empty list: %+v, %v", c.Shares, err)
	}
	if c := DefaultConfig(); len(c.Shares) != 2 || c.Shares[0].Path != home || c.Shares[1].Path != os.TempDir() {
		t.Errorf("by default %+v is shared", c.Shares)
	}
}

func TestSharesConfigErrors(t *testing.T) {
	for body, want := range map[string]string{
		"shares: /home\n":                                "f:1: shares is a list",
		"cpus: 2\nshares:\n- src\n":                      `f:3: share "src" is neither`,
		"shares:\n- [~]\n":                               "f:2: a share is a path",
		"shares:\n- {path: /a, readonly: true}\n":        "f:2: a share has a path",
		"shares:\n- {path: /a, read-only: perhaps}\n":    "f:2: a share has a path",
		"shares:\n- {read-only: true}\n":                 `f:2: share "" is neither`,
		"shares:\n- ''\n":                                `f:2: share "" is neither`,
		"shares: [/a]\nshares: [/b]\n":                   "f:2: ",
		"shares:\n- ~user/src\n":                         `share "~user/src" is neither`,
		"shares: {a: b}\n":                               "f:1: shares is a list",
		"shares:\n- {path: {a: b}}\n":                    "f:2: a share has a path",
		"shares:\n  - {path: relative, read-only: no}\n": `share "relative" is neither`,
	} {
		if _, err := ParseConfig([]byte(body), "f"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", body, err, want)
		}
	}
}

// sharing makes a machine and folders: a, a/b, real with the link "link" to it
// beside, and a file.
func sharing(t *testing.T) (Machine, string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs symbolic links")
	}
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"a/b", "real", "berth/data"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"link": "real", "ab": "a/b", "a/in": "b", "loop": "loop", "keys": "berth/data"} {
		if err := os.Symlink(target, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := under(filepath.Join(top, "berth"), filepath.Join(top, "berth")).Machine("default")
	if err != nil {
		t.Fatal(err)
	}
	return m, top
}

func TestFolders(t *testing.T) {
	m, top := sharing(t)
	for name, c := range map[string]struct {
		shares Shares
		want   string // PATH[=NAME...][:ro], relative to top
	}{
		"one":                    {Shares{{Path: "a"}}, "a"},
		"none":                   {nil, ""},
		"nested":                 {Shares{{Path: "a/b"}, {Path: "a"}}, "a"},
		"twice":                  {Shares{{Path: "a"}, {Path: "a/"}}, "a"},
		"by a link":              {Shares{{Path: "link"}}, "real=link"},
		"nested by a link in it": {Shares{{Path: "a"}, {Path: "a/in"}}, "a"},
		"nested by a link apart": {Shares{{Path: "a"}, {Path: "ab"}}, "a a/b=ab"},
		"twice by names":         {Shares{{Path: "real"}, {Path: "link"}}, "real=link"},
		"writable in read-only":  {Shares{{Path: "a", ReadOnly: true}, {Path: "a/b"}}, "a:ro a/b"},
		"both read-only":         {Shares{{Path: "a/b", ReadOnly: true}, {Path: "a", ReadOnly: true}}, "a:ro"},
		"beside":                 {Shares{{Path: "a/b"}, {Path: "real"}}, "a/b real"},
		"Berth's own inside":     {Shares{{Path: "."}}, "."},
		"native":                 {Shares{{Path: "real", Native: true}}, "real:native"},
		"native in another":      {Shares{{Path: "a"}, {Path: "a/b", Native: true}}, "a a/b:native"},
		"in a native one":        {Shares{{Path: "a/b"}, {Path: "a", Native: true}}, "a:native a/b"},
		"twice, once native":     {Shares{{Path: "a"}, {Path: "a", Native: true}}, "a:native"},
		"a default that is gone": {Shares{{Path: "gone", optional: true}, {Path: "a", optional: true}}, "a"},
	} {
		folders, err := m.Folders(Config{Shares: below(top, c.shares)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, f := range folders {
			s := relative(top, f.Path)
			for _, n := range f.Names {
				if n != f.Path {
					s += "=" + relative(top, n)
				}
			}
			if f.ReadOnly {
				s += ":ro"
			}
			if f.Native {
				s += ":native"
			}
			got = append(got, s)
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestFoldersRefused(t *testing.T) {
	m, top := sharing(t)
	for name, c := range map[string]struct {
		shares Shares
		want   string
	}{
		"missing":               {Shares{{Path: "gone"}}, "gone: no such file"},
		"a file":                {Shares{{Path: "file"}}, "not a folder"},
		"a loop":                {Shares{{Path: "loop"}}, "loop"},
		"Berth's own":           {Shares{{Path: "berth/data"}}, "Berth's own files"},
		"Berth's own by a link": {Shares{{Path: "keys"}}, "Berth's own files"},
		"native with Berth's":   {Shares{{Path: ".", Native: true}}, "native: true cannot hide"},
		"read-only in writable": {Shares{{Path: "a"}, {Path: "a/b", ReadOnly: true}}, "read-only but lies in"},
	} {
		_, err := m.Folders(Config{Shares: below(top, c.shares)})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), m.ConfigFile) {
			t.Errorf("%s: %v, want %q and the configuration's name", name, err, c.want)
		}
	}
}

func below(top string, shares Shares) Shares {
	var out Shares
	for _, s := range shares {
		s.Path = filepath.Join(top, s.Path)
		out = append(out, s)
	}
	return out
}

func relative(top, path string) string {
	rel, err := filepath.Rel(top, path)
	if err != nil {
		return path
	}
	return rel
}
