//go:build !windows

package machine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketDirMustBeOurs(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	if err := checkOwned(dir, os.Getuid()); err != nil {
		t.Error(err)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("others can look into it: %v", info.Mode())
	}
	if err := checkOwned(dir, os.Getuid()+1); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("another user's directory: %v", err)
	}
	link := filepath.Join(dir, "link")
	os.Symlink(dir, link)
	if err := checkOwned(link, os.Getuid()); err == nil {
		t.Error("a symlink was taken")
	}
}
