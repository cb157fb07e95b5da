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
	"strings"
	"testing"

	"github.com/berthvm/berth/images"
)

// TestMade looks at what "make dist" has made, in the directory BERTH_DIST.
func TestMade(t *testing.T) {
	dir, version := os.Getenv("BERTH_DIST"), os.Getenv("BERTH_DIST_VERSION")
	if dir == "" {
		t.Skip("set BERTH_DIST and BERTH_DIST_VERSION: make dist does")
	}
	platforms, err := choose(os.Getenv("BERTH_DIST_PLATFORMS"), false)
	if err != nil {
		t.Fatal(err)
	}
	s := settings{version: version, out: dir, platforms: platforms}
	if out, err := inDir(dir, "sha256sum", "--check", "--quiet", "SHA256SUMS"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for _, p := range platforms {
		t.Run(p.String(), func(t *testing.T) { madeArchive(t, s, p) })
	}
	texts := ""
	for _, name := range []string{"berth.rb", "Berth.Berth.installer.yaml"} {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		texts += strings.ToLower(string(body))
	}
	for _, p := range platforms {
		if sum, err := s.sum(p); err != nil || sum == "" || !strings.Contains(texts, sum) || !strings.Contains(texts, s.archiveName(p)) {
			t.Errorf("no manifest has %s with its checksum: %v", s.archiveName(p), err)
		}
	}
}

func inDir(dir string, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// madeArchive unpacks one, verifies the guest's images as the programs do, and asks
// the programs that run here who they are.
func madeArchive(t *testing.T, s settings, p platform) {
	root := t.TempDir()
	archive := filepath.Join(s.out, s.archiveName(p))
	unpack := untar
	if p.os == "windows" {
		unpack = unzip
	}
	if err := unpack(archive, root); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(root, "berth-"+s.version+"-"+p.String())
	for _, name := range append([]string{"LICENSE", "README.md", "completions/berth.bash", "completions/_berth", "completions/berth.fish", "completions/berth.ps1"},
		"berth"+p.exe(), "berth-build"+p.exe(), "berth-tray"+p.exe()) {
		if info, err := os.Stat(filepath.Join(top, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	packages := 0
	for _, arch := range guests {
		image, err := images.Open(filepath.Join(top, "image-"+arch))
		if err != nil || image.Manifest.Arch != arch || image.Manifest.Version != s.version {
			t.Errorf("the guest's image for %s: %v, %+v", arch, err, image)
			continue
		}
		packages += len(image.Manifest.Packages)
	}
	body, err := os.ReadFile(filepath.Join(top, "sbom.cdx.json"))
	var b bom
	if err := errors.Join(err, json.Unmarshal(body, &b)); err != nil || len(b.Components) < packages+50 || b.Metadata.Component.Version != s.version {
		t.Errorf("the bill of materials has %d parts, %d packages: %v", len(b.Components), packages, err)
	}
	program := filepath.Join(top, "berth"+p.exe())
	if p.String() == "linux-amd64" {
		if out, err := inDir(top, program, "--version"); err != nil || !strings.Contains(out, s.version) {
			t.Errorf("berth --version: %s, %v", out, err)
		}
		madeDeb(t, s, top)
		return
	}
	if body, err := os.ReadFile(program); err != nil || !bytes.Contains(body, []byte(s.version)) {
		t.Errorf("the program is not stamped: %v", err)
	}
}

// madeDeb compares the package's programs with the archive's.
func madeDeb(t *testing.T, s settings, top string) {
	root := t.TempDir()
	if out, err := inDir(root, "dpkg-deb", "-x", filepath.Join(s.out, "berth_"+s.version+"_amd64.deb"), root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range hostPrograms {
		a, errA := sha256Of(filepath.Join(top, name))
		b, errB := sha256Of(filepath.Join(root, debLib, name))
		if a != b || errA != nil || errB != nil {
			t.Errorf("%s differs: %v, %v", name, errA, errB)
		}
	}
	if image, err := images.Open(filepath.Join(root, debLib, "image")); err != nil || image.Manifest.Arch != "amd64" {
		t.Errorf("the guest's image: %v", err)
	}
	if out, err := inDir(root, filepath.Join(root, "usr/bin/berth"), "--version"); err != nil || !strings.Contains(out, s.version) {
		t.Errorf("berth --version: %s, %v", out, err)
	}
}

func untar(archive, root string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = unpackFile(root, h.Name, h.FileInfo().Mode(), tr)
		}
		if err != nil {
			return err
		}
	}
}

func unzip(archive, root string) error {
	zr, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer zr.Close()
	for _, f := range zr.File {
		r, err := f.Open()
		if err == nil {
			err = unpackFile(root, f.Name, f.Mode(), r)
			r.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func unpackFile(root, name string, mode os.FileMode, r io.Reader) error {
	path := filepath.Join(root, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
