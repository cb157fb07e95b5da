package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// LoadBuiltin loads the OCI archives of a directory (*.tar) that this store has
// not loaded before: an image the user removed stays removed until its archive
// changes. When there is nothing to do it reads a few kilobytes. A directory that
// is missing holds nothing.
func (s *Store) LoadBuiltin(ctx context.Context, dir string) error {
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	done, err := s.readBuiltin()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range archives {
		name := filepath.Base(path)
		id, err := s.loadBuiltin(ctx, path, done[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("built-in image %s: %w", name, err))
			continue
		}
		if done[name] != id {
			done[name] = id
			errs = append(errs, s.writeBuiltin(done))
		}
	}
	return errors.Join(errs...)
}

// loadBuiltin loads one archive unless it is the one that is known, and returns
// its identity.
func (s *Store) loadBuiltin(ctx context.Context, path string, known digest.Digest) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	index, err := archiveIndex(f)
	if err != nil {
		return "", err
	}
	id := digest.FromBytes(index)
	if id == known {
		return id, nil
	}
	if _, err := f.Seek(0, 0); err != nil {
		return "", err
	}
	_, err = s.Load(ctx, f, nil)
	return id, err
}

// readBuiltin reads which archive of which name was loaded. A damaged file counts
// as none: loading again does no harm.
func (s *Store) readBuiltin() (map[string]digest.Digest, error) {
	done := map[string]digest.Digest{}
	body, err := os.ReadFile(s.path("builtin.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return done, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &done); err != nil || done == nil {
		s.log.Warn("the record of built-in images is damaged", "error", err)
		return map[string]digest.Digest{}, nil
	}
	return done, nil
}

func (s *Store) writeBuiltin(done map[string]digest.Digest) error {
	body, err := json.Marshal(done)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.root, ".builtin-")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path("builtin.json"))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
