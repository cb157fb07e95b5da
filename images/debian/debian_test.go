package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestLockRoundTrip(t *testing.T) {
	want := []Package{{"amd64", "a", "1:2-3", sum("a")}, {"arm64", "a", "1", sum("b")}, {"arm64", "b", "2~x", sum("c")}}
	var text strings.Builder
	if err := FormatLock(&text, []Package{want[2], want[0], want[1]}); err != nil {
		t.Fatal(err)
	}
	got, err := ParseLock(strings.NewReader(text.String()))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestParseLockRefuses(t *testing.T) {
	for _, text := range []string{
		"amd64 a 1", "amd64 a 1 xyz", "amd64 a 1 " + sum("")[:62], "amd64 a 1 " + sum("") + " more",
		"amd64 -oDir::Etc=x 1 " + sum(""), "amd64 ../a 1 " + sum(""), "amd64 a b=c " + sum(""),
	} {
		if got, err := ParseLock(strings.NewReader(text)); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("# comment\n\namd64 a 1 " + sum("") + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		packages, err := ParseLock(strings.NewReader(text))
		if err != nil {
			return
		}
		var again strings.Builder
		if err := FormatLock(&again, packages); err != nil {
			t.Fatal(err)
		}
		if got, err := ParseLock(strings.NewReader(again.String())); err != nil || len(got) != len(packages) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	})
}

func TestKernelOf(t *testing.T) {
	for name, want := range map[string]bool{
		"linux-image-6.12.117+deb12-amd64":          true,
		"linux-image-6.12.117+deb12-cloud-amd64":    false,
		"linux-image-6.12.117+deb12-amd64-unsigned": false,
		"linux-image-6.1.0-1-amd64":                 false,
		"linux-image-6.12-amd64":                    false,
	} {
		if got := kernelOf("linux-image-6.12-amd64", name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// archive puts an apt in PATH whose archive holds the given versions of
// packages, the last being the candidate. While "stale" exists in its directory
// it knows nothing, until "apt-get update".
func archive(t *testing.T, versions map[string][]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, list := range versions {
		var show strings.Builder
		for _, v := range list {
			fmt.Fprintf(&show, "Package: %s\nVersion: %s\nSHA256: %s\n\n", name, v, sum(name+v))
			if err := os.WriteFile(filepath.Join(dir, name+"="+v+".pool"), []byte(name+v), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for suffix, text := range map[string]string{".show": show.String(), ".policy": "  Candidate: " + list[len(list)-1] + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name+suffix), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	scripts := map[string]string{
		"apt-cache": `while [ "$1" = -o ]; do shift 2; done
[ ! -e $A/stale ] || exit 100
for last; do :; done; name=${last%%:*}
case $1 in
depends) echo "$name"; cat "$A/$name.depends" ;;
*) cat "$A/$name.$1" 2>/dev/null || { echo "E: No packages found" >&2; exit 100; } ;;
esac`,
		"apt-get": `while true; do case $1 in -o) shift 2 ;; -q) shift ;; *) break ;; esac; done
echo "$1" >>$A/log
case $1 in
update) rm -f $A/stale $A/gone ;;
download) shift; [ ! -e $A/gone ] || { echo "E: 404 Not Found" >&2; exit 100; }
	while [ "$1" = -o ]; do shift 2; done
	for p; do n=${p%%:*}; v=${p#*=}; cp "$A/$n=$v.pool" "$n"_x.deb || exit 100; done ;;
esac`,
	}
	for name, script := range scripts {
		text := "#!/bin/sh\nA=" + dir + "\n" + script + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFetch(t *testing.T) {
	tests := []struct {
		name     string
		pin      Package
		prepare  string // a file of the fake apt
		want     string // version
		note     string
		updates  int
		download string // what the archive serves instead
		err      string
	}{
		{name: "pinned version", pin: Package{"amd64", "a", "1", sum("a1")}, want: "1"},
		{name: "pin is gone", pin: Package{"amd64", "a", "0", sum("a0")}, want: "2", note: "a 0 is gone; taking 2"},
		{name: "pin with another hash", pin: Package{"amd64", "a", "2", sum("x")}, want: "2", note: "another SHA-256"},
		{name: "no pin", pin: Package{"arm64", "a", "1", sum("a1")}, want: "2", note: "not pinned"},
		{name: "no lists", pin: Package{"amd64", "a", "1", sum("a1")}, prepare: "stale", want: "1", updates: 1},
		{name: "stale lists", pin: Package{"amd64", "a", "1", sum("a1")}, prepare: "gone", want: "1", updates: 1},
		{name: "wrong content", pin: Package{"amd64", "a", "1", sum("a1")}, download: "evil", err: "no a 1 with the SHA-256"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			apt := archive(t, map[string][]string{"a": {"1", "2"}})
			if test.prepare != "" {
				touch(t, filepath.Join(apt, test.prepare))
			}
			if test.download != "" {
				if err := os.WriteFile(filepath.Join(apt, "a=1.pool"), []byte(test.download), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var notes []string
			f := Fetcher{Arch: "amd64", Cache: t.TempDir(), Note: func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }}
			packages, paths, err := f.Fetch(context.Background(), []string{"a"}, []Package{test.pin})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if packages[0].Version != test.want {
				t.Errorf("got %+v", packages[0])
			}
			if data, err := os.ReadFile(paths[0]); err != nil || string(data) != "a"+test.want {
				t.Errorf("downloaded %q, %v", data, err)
			}
			all := strings.Join(notes, "\n")
			if !strings.Contains(all, test.note) || test.note == "" && strings.Contains(all, "taking") {
				t.Errorf("notes: %s", all)
			}
			log, _ := os.ReadFile(filepath.Join(apt, "log"))
			if got := strings.Count(string(log), "update"); got != test.updates {
				t.Errorf("%d updates, want %d", got, test.updates)
			}
			// Once cached, apt is not asked again.
			os.Remove(filepath.Join(apt, "log"))
			touch(t, filepath.Join(apt, "stale"))
			if _, _, err := f.Fetch(context.Background(), []string{"a"}, packages); err != nil {
				t.Errorf("from the cache: %v", err)
			}
			if _, err := os.Stat(filepath.Join(apt, "log")); err == nil {
				t.Error("apt-get was run for a cached package")
			}
		})
	}
}

func TestFetchKernel(t *testing.T) {
	const name = "linux-image-6.12.9+deb12-amd64"
	apt := archive(t, map[string][]string{name: {"6.12.9-1"}})
	if err := os.WriteFile(filepath.Join(apt, "linux-image-6.12-amd64.depends"), []byte("  Depends: "+name+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var notes []string
	f := Fetcher{Arch: "amd64", Cache: t.TempDir(), Note: func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }}
	old := Package{"amd64", "linux-image-6.12.8+deb12-amd64", "6.12.8-1", sum("old")}
	packages, _, err := f.Fetch(context.Background(), []string{"linux-image-6.12-amd64"}, []Package{old})
	if err != nil || packages[0].Name != name {
		t.Fatalf("got %v, %v", packages, err)
	}
	if want := old.Name + " is gone; taking " + name + " 6.12.9-1"; !strings.Contains(strings.Join(notes, "\n"), want) {
		t.Errorf("notes %q lack %q", notes, want)
	}
	if _, _, err := f.Fetch(context.Background(), []string{"missing"}, nil); err == nil {
		t.Error("a package that does not exist was found")
	}
}
