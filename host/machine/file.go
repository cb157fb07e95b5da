package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path by one with the given content, whole or
// not at all, also when the power fails. Its directory exists.
func WriteFile(path string, content []byte, perm fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(perm), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// removeTemporary deletes what a WriteFile that was killed left in dir.
func removeTemporary(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".*.*"))
	if err != nil {
		return err
	}
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
