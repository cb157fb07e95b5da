//go:build !windows

package autostart

import (
	"os"
	"path/filepath"
)

// writeEntry puts an entry's file in place.
func writeEntry(file string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o644)
}

func removeEntry(file string) error {
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
