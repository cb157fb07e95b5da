package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Traces lists the names of all machines of which there is anything, whole or
// not, in order.
func (h Home) Traces() ([]string, error) {
	var names []string
	for _, dir := range []string{h.Data, h.State} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot list the machines: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && checkName(e.Name()) == nil {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Directories are those of Berth's that exist.
func (h Home) Directories() []string {
	var there []string
	for _, dir := range []string{h.Config, h.Data, h.State, h.Cache} {
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	return there
}

// Remove removes all of the home's directories. Its machines are gone by then.
func (h Home) Remove() error {
	var errs []error
	for _, dir := range h.Directories() {
		errs = append(errs, os.RemoveAll(dir))
		// The directory that holds only those goes with them; one of the user's stays.
		if parent := filepath.Dir(dir); parent == h.Root || filepath.Base(parent) == "berth" {
			os.Remove(parent) // fails unless it is empty
		}
	}
	return errors.Join(errs...)
}
