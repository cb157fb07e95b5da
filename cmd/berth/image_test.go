package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFindImage(t *testing.T) {
	for _, c := range []struct {
		name, bin, want string
		there           []string
	}{
		{"of a clone", "bin", "bin/image", []string{"bin/image"}},
		{"of a Debian package", "usr/lib/berth", "usr/lib/berth/image", []string{"usr/lib/berth/image"}},
		{"for both kinds of Mac", "opt", "opt/image-arm64", []string{"opt/image-amd64", "opt/image-arm64"}},
		{"the host's beside another's", "bin", "bin/image", []string{"bin/image", "bin/image-amd64"}},
		{"of a prefix", "usr/local/bin", "usr/local/share/berth/image", []string{"usr/local/share/berth/image"}},
		{"of a prefix's lib", "usr/local/bin", "usr/local/lib/berth/image-arm64", []string{"usr/local/lib/berth/image-arm64"}},
		{"nowhere", "bin", "bin/image", nil},
	} {
		root := t.TempDir()
		for _, dir := range append(c.there, c.bin) {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := findImage(filepath.Join(root, c.bin), "arm64"); got != filepath.Join(root, filepath.FromSlash(c.want)) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
