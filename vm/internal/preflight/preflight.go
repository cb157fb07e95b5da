// Package preflight is what drivers check and do alike around a machine's files and
// its console.
package preflight

import (
	"fmt"
	"io"
	"os"

	"github.com/berthvm/berth/vm"
)

// Files makes sure of the files that cfg names, and of dir.
func Files(cfg vm.Config, dir string) error {
	files := []string{cfg.Kernel}
	if cfg.Initrd != "" {
		files = append(files, cfg.Initrd)
	}
	for _, d := range cfg.Disks {
		files = append(files, d.Path)
	}
	for _, name := range files {
		if st, err := os.Stat(name); err != nil {
			return fmt.Errorf("cannot boot machine %q: %w", cfg.Name, err)
		} else if !st.Mode().IsRegular() {
			return fmt.Errorf("cannot boot machine %q: %s is not a file", cfg.Name, name)
		}
	}
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("machine directory: %w", err)
	} else if !st.IsDir() {
		return fmt.Errorf("machine directory: %s is not a directory", dir)
	}
	return nil
}

// Console copies what a machine writes to its console to w, which may be nil, until
// r ends. It keeps reading whatever becomes of w: a guest whose console is stuck
// stops.
func Console(w io.Writer, r io.Reader) error {
	if w == nil {
		w = io.Discard
	}
	_, err := io.Copy(deaf{w}, r)
	return err
}

type deaf struct{ w io.Writer }

// Write implements io.Writer.
func (d deaf) Write(p []byte) (int, error) {
	d.w.Write(p)
	return len(p), nil
}
