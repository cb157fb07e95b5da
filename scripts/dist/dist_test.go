package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/images"
)

// testTree is a release whose files are small.
func testTree(t *testing.T, list string) (s settings, work string) {
	t.Helper()
	platforms, err := choose(list, false)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s = settings{version: "1.2.3", out: filepath.Join(dir, "out"), platforms: platforms, when: time.Unix(1_700_000_000, 0).UTC()}
	work = filepath.Join(dir, "work")
	put := func(name string, body []byte) {
		t.Helper()
		name = filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, body, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.out, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{"LICENSE", "README.md"} {
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("gofmt") // a small program in Go
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range platforms {
		for _, name := range hostPrograms {
			name = filepath.Join(work, p.String(), name+p.exe())
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(program, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range shells {
		put("completions/"+name, []byte("complete"))
	}
	for _, arch := range []string{"amd64", "arm64"} {
		manifest, err := json.Marshal(images.Manifest{Format: images.Format, Version: "1.2.3", Arch: arch,
			Files:    []images.File{sample("kernel", images.RoleKernel), sample("initrd", images.RoleInitrd), sample("root", images.RoleRoot)},
			Packages: []images.Package{{Name: "busybox-static", Version: "1:1.35.0-4+b1", SHA256: "ab"}}})
		if err != nil {
			t.Fatal(err)
		}
		put("image-"+arch+"/"+images.ManifestName, manifest)
		put("image-"+arch+"/.verified", []byte("not to be packed"))
		for _, name := range []string{"kernel", "initrd", "root"} {
			put("image-"+arch+"/"+name, []byte("x"))
		}
	}
	return s, work
}

func sample(name string, role images.Role) images.File {
	return images.File{Name: name, Role: role, Size: 1, SHA256: "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
}

// packAll makes everything but the programs.
func packAll(t *testing.T, list string) settings {
	t.Helper()
	s, work := testTree(t, list)
	for _, p := range s.platforms {
		dir := filepath.Join(work, p.String())
		if err := s.pack(p, dir, work); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.manifests(); err != nil {
		t.Fatal(err)
	}
	if err := sums(s.out); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPackages(t *testing.T) {
	s := packAll(t, "linux/amd64,windows/arm64,darwin/arm64")
	files, err := os.ReadDir(s.out)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	want := []string{"Berth.Berth.installer.yaml", "Berth.Berth.locale.en-US.yaml", "Berth.Berth.yaml", "SHA256SUMS",
		"berth-1.2.3-darwin-arm64-qemu.tar.gz", "berth-1.2.3-linux-amd64.tar.gz", "berth-1.2.3-windows-arm64.zip", "berth.rb", "berth_1.2.3_amd64.deb"}
	if !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	content := []string{"LICENSE", "README.md", "berth", "berth-build", "berth-tray", "completions/", "completions/_berth", "completions/berth.bash",
		"completions/berth.fish", "completions/berth.ps1", "image-amd64/", "image-amd64/initrd", "image-amd64/kernel", "image-amd64/manifest.json", "image-amd64/root",
		"image-arm64/", "image-arm64/initrd", "image-arm64/kernel", "image-arm64/manifest.json", "image-arm64/root", "sbom.cdx.json"}
	for i := range content {
		content[i] = "berth-1.2.3-linux-amd64/" + content[i]
	}
	if got := tarNames(t, filepath.Join(s.out, "berth-1.2.3-linux-amd64.tar.gz"), s.when); !slices.Equal(got, append([]string{"berth-1.2.3-linux-amd64/"}, content...)) {
		t.Errorf("%q", got)
	}
	z, err := zip.OpenReader(filepath.Join(s.out, "berth-1.2.3-windows-arm64.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if !slices.ContainsFunc(z.File, func(f *zip.File) bool { return f.Name == "berth-1.2.3-windows-arm64/berth-tray.exe" }) {
		t.Error("no icon for Windows")
	}
	formula, err := os.ReadFile(filepath.Join(s.out, "berth.rb"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := sha256Of(filepath.Join(s.out, "berth-1.2.3-darwin-arm64-qemu.tar.gz"))
	if err != nil || !strings.Contains(string(formula), sum) || !strings.Contains(string(formula), `depends_on "qemu"`) {
		t.Errorf("%s\n%v", formula, err)
	}
}

func tarNames(t *testing.T, file string, when time.Time) (names []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if !h.ModTime.Equal(when) || h.Uid != 0 || strings.Contains(h.Name, "berth-tray") && h.Mode != 0o755 {
			t.Errorf("%+v", h)
		}
	}
}

// TestReproducible: the same files make the same bytes, whenever and wherever.
func TestReproducible(t *testing.T) {
	a := packAll(t, "linux/arm64,windows/amd64")
	b := packAll(t, "linux/arm64,windows/amd64")
	first, errA := os.ReadFile(filepath.Join(a.out, "SHA256SUMS"))
	second, errB := os.ReadFile(filepath.Join(b.out, "SHA256SUMS"))
	if errA != nil || errB != nil || !bytes.Equal(first, second) || len(first) == 0 {
		t.Errorf("%s\n%s", first, second)
	}
}

// TestDeb asks Debian's own tool what it makes of the package.
func TestDeb(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg-deb: ", err)
	}
	s := packAll(t, "linux/amd64")
	file := filepath.Join(s.out, "berth_1.2.3_amd64.deb")
	out, err := exec.Command("dpkg-deb", "--field", file, "Package", "Version", "Architecture", "Depends").CombinedOutput()
	if err != nil || string(out) != "Package: berth\nVersion: 1.2.3\nArchitecture: amd64\nDepends: qemu-system-x86 (>= 1:7.2)\n" {
		t.Errorf("%s, %v", out, err)
	}
	out, err = exec.Command("dpkg-deb", "--contents", file).CombinedOutput()
	for _, want := range []string{"./usr/bin/berth -> ../lib/berth/berth", "./usr/lib/berth/image/root", "./usr/share/bash-completion/completions/berth",
		"./usr/share/zsh/vendor-completions/_berth", "./usr/share/fish/vendor_completions.d/berth.fish", "./usr/share/icons/hicolor/48x48/apps/berth.png"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %s in\n%s, %v", want, out, err)
		}
	}
}

// TestDebInstall installs the package into a root of its own, and takes it out again:
// nothing is left, not even what the program has written beside it.
func TestDebInstall(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil || os.Getuid() != 0 {
		t.Skip("takes dpkg, and root: ", err)
	}
	s := packAll(t, "linux/amd64")
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg/info"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) {
		t.Helper()
		args = append([]string{"--root=" + root, "--force-script-chrootless", "--force-depends", "--log=/dev/null"}, args...)
		if out, err := exec.Command("dpkg", args...).CombinedOutput(); err != nil {
			t.Fatalf("dpkg %q: %v\n%s", args, err, out)
		}
	}
	dpkg("--install", filepath.Join(s.out, "berth_1.2.3_amd64.deb"))
	if _, err := os.Stat(filepath.Join(root, "usr/bin/berth")); err != nil {
		t.Error(err)
	}
	dpkg("--verify", "berth")
	if err := os.WriteFile(filepath.Join(root, "usr/lib/berth/image/.verified"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg("--purge", "berth")
	filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if path == filepath.Join(root, "var/lib/dpkg") {
			return filepath.SkipDir
		}
		if err != nil || !d.IsDir() || strings.Contains(path, "/usr") {
			t.Errorf("left: %s, %v", path, err)
		}
		return nil
	})
}

func TestBill(t *testing.T) {
	s, work := testTree(t, "linux/amd64")
	body, err := s.bill(s.platforms[0], filepath.Join(work, "linux-amd64"), work, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(body, &b); err != nil {
		t.Fatal(err)
	}
	purls := map[string]bool{}
	for _, c := range b.Components {
		purls[c.PURL] = true
	}
	if b.Format != "CycloneDX" || b.Metadata.Component.Version != "1.2.3" || b.Metadata.Timestamp != "2023-11-14T22:13:20Z" ||
		!purls["pkg:deb/debian/busybox-static@1%3A1.35.0-4%2Bb1?arch=amd64"] || purls["pkg:deb/debian/busybox-static@1%3A1.35.0-4%2Bb1?arch=arm64"] {
		t.Errorf("%s", body)
	}
}

func TestChoose(t *testing.T) {
	all, err := choose("", false)
	if err != nil || len(all) != 6 || all[5].String() != "darwin-arm64-qemu" {
		t.Errorf("%v, %v", all, err)
	}
	if mac, err := choose("", true); err != nil || mac[4].String() != "darwin-universal" {
		t.Errorf("%v, %v", mac, err)
	}
	if _, err := choose("plan9/386", false); err == nil {
		t.Error("packages for Plan 9")
	}
}
