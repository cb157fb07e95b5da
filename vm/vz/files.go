package vz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// checkKernel refuses a kernel that the framework cannot boot, which it would do
// without a word: the machine would just stop.
func checkKernel(path, arch string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 0x206)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return fmt.Errorf("kernel: %w", err)
	}
	head = head[:n]
	magic, offset, want := "HdrS", 0x202, "a bzImage" // Documentation/arch/x86/boot.rst
	if arch == "arm64" {
		magic, offset, want = "ARM\x64", 0x38, "an uncompressed arm64 Image" // Documentation/arch/arm64/booting.rst
	}
	if len(head) < offset+len(magic) || string(head[offset:offset+len(magic)]) != magic {
		return fmt.Errorf("kernel: %s is not %s, which Virtualization.framework needs", path, want)
	}
	return nil
}

// identifier returns the machine's identifier from its file. If there is none, or
// check refuses it, a fresh one is made and written. A machine's saved state can
// be restored under the same identifier only.
func identifier(path string, fresh func() ([]byte, error), check func([]byte) bool) ([]byte, error) {
	if path != "" {
		id, err := os.ReadFile(path)
		switch {
		case err == nil && len(id) > 0 && check(id):
			return id, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("machine identifier: %w", err)
		}
	}
	id, err := fresh()
	if err != nil {
		return nil, fmt.Errorf("machine identifier: %w", err)
	}
	id = bytes.Clone(id) // the framework's memory
	if path == "" {
		return id, nil
	}
	if err := writeWhole(path, id); err != nil {
		return nil, fmt.Errorf("machine identifier: %w", err)
	}
	return id, nil
}

// writeWhole writes a file so that it is there whole or not at all.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
