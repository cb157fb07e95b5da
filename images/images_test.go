package images_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/images"
)

// writeImage makes an image of small files and returns its directory.
func writeImage(t testing.TB, change func(*images.Manifest)) string {
	t.Helper()
	dir := t.TempDir()
	m := images.Manifest{Format: images.Format, Version: "1", Arch: "amd64", Cmdline: []string{"quiet"}}
	for _, f := range []images.File{{Name: "vmlinux", Role: images.RoleKernel}, {Name: "initramfs", Role: images.RoleInitrd}, {Name: "root.erofs", Role: images.RoleRoot}} {
		data := []byte("content of " + f.Name)
		if err := os.WriteFile(filepath.Join(dir, f.Name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		f.Size, f.SHA256 = int64(len(data)), hex.EncodeToString(sum[:])
		m.Files = append(m.Files, f)
	}
	if change != nil {
		change(&m)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, images.ManifestName), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpen(t *testing.T) {
	dir := writeImage(t, nil)
	image, err := images.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if image.Kernel != filepath.Join(dir, "vmlinux") || image.Initrd != filepath.Join(dir, "initramfs") ||
		image.Root != filepath.Join(dir, "root.erofs") || image.Cmdline[0] != "quiet" || image.Manifest.Version != "1" {
		t.Errorf("got %+v", image)
	}
	if image.BzImage != "" {
		t.Errorf("an image without a bzImage has %s", image.BzImage)
	}
	dir = writeImage(t, func(m *images.Manifest) {
		bzImage := m.Files[0]
		bzImage.Role = images.RoleBzImage
		m.Files = append(m.Files, bzImage)
	})
	if image, err = images.Open(dir); err != nil || image.BzImage != filepath.Join(dir, "vmlinux") {
		t.Errorf("got %+v, %v", image, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*images.Manifest)
		damage func(dir string) error
		want   error
		text   string
	}{
		{"no directory", nil, os.RemoveAll, images.ErrMissing, "make build"},
		{"no kernel file", nil, func(d string) error { return os.Remove(filepath.Join(d, "vmlinux")) }, images.ErrMissing, "vmlinux"},
		{"a flipped bit", nil, func(d string) error {
			return os.WriteFile(filepath.Join(d, "root.erofs"), []byte("content of root.erofS"), 0o644)
		}, images.ErrCorrupt, "SHA-256"},
		{"cut short", nil, func(d string) error { return os.Truncate(filepath.Join(d, "initramfs"), 3) }, images.ErrCorrupt, "3 bytes"},
		{"manifest is no JSON", nil, func(d string) error {
			return os.WriteFile(filepath.Join(d, images.ManifestName), []byte("{"), 0o644)
		}, images.ErrCorrupt, "manifest"},
		{"another format", func(m *images.Manifest) { m.Format++ }, nil, images.ErrVersion, "format"},
		{"no root", func(m *images.Manifest) { m.Files = m.Files[:2] }, nil, images.ErrCorrupt, "no file for root"},
		{"two kernels", func(m *images.Manifest) { m.Files[1].Role = images.RoleKernel }, nil, images.ErrCorrupt, "two files"},
		{"a path as a name", func(m *images.Manifest) { m.Files[0].Name = "../vmlinux" }, nil, images.ErrCorrupt, "invalid file name"},
		{"a parent as a name", func(m *images.Manifest) { m.Files[0].Name = ".." }, nil, images.ErrCorrupt, "invalid file name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := writeImage(t, test.change)
			if test.damage != nil {
				if err := test.damage(dir); err != nil {
					t.Fatal(err)
				}
			}
			_, err := images.Open(dir)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v; want %v with %q", err, test.want, test.text)
			}
		})
	}
}

// TestOpenRemembers changes what was verified and remembered.
func TestOpenRemembers(t *testing.T) {
	dir := writeImage(t, nil)
	kernel := filepath.Join(dir, "vmlinux")
	old := time.Now().Add(-time.Hour)
	time.Sleep(2100 * time.Millisecond) // no change is remembered before it has settled
	if _, err := images.Open(dir); err != nil {
		t.Fatal(err)
	}
	remembered := filepath.Join(dir, ".verified")
	if _, err := os.Stat(remembered); err != nil && runtime.GOOS == "linux" {
		t.Fatalf("nothing was remembered: %v", err)
	}
	if _, err := images.Open(dir); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	info, err := os.Stat(kernel)
	if err != nil {
		t.Fatal(err)
	}
	// Same size, same time of modification: the time of change gives it away.
	if err := os.WriteFile(kernel, []byte("content of vmlinuX"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(kernel, old, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Open(dir); !errors.Is(err, images.ErrCorrupt) {
		t.Errorf("changed in place: %v", err)
	}
	if err := os.WriteFile(remembered, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Open(dir); !errors.Is(err, images.ErrCorrupt) {
		t.Errorf("with a damaged memory: %v", err)
	}
}

// BenchmarkOpen hashes as much as an image has.
func BenchmarkOpen(b *testing.B) {
	var sum [sha256.Size]byte
	dir := writeImage(b, func(m *images.Manifest) {
		for i := range m.Files {
			m.Files[i].Size = 40 << 20
			m.Files[i].SHA256 = hex.EncodeToString(sum[:])
		}
	})
	hash := sha256.New()
	hash.Write(make([]byte, 40<<20))
	zeros := hex.EncodeToString(hash.Sum(nil))
	text, err := os.ReadFile(filepath.Join(dir, images.ManifestName))
	if err != nil {
		b.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(string(text), hex.EncodeToString(sum[:]), zeros))
	if err := os.WriteFile(filepath.Join(dir, images.ManifestName), text, 0o644); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"vmlinux", "initramfs", "root.erofs"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 40<<20), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		os.Remove(filepath.Join(dir, ".verified"))
		if _, err := images.Open(dir); err != nil {
			b.Fatal(err)
		}
	}
}
