package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoadBuiltin loads the OCI archives of a directory (*.tar) that this store has
// not loaded before: an image the user removed stays removed until its archive
// changes, or until it is pulled, for which no registry is asked. When there is
// nothing to do it reads a few kilobytes. A directory that is missing holds
// nothing.
func (s *Store) LoadBuiltin(ctx context.Context, dir string) error {
	s.mu.Lock()
	s.builtin = dir
	s.mu.Unlock()
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
	_, err = s.Load(ctx, f, nil, nil)
	return id, err
}

// pullBuiltin takes an image that is wanted from a registry from the built-in
// archives, if it is one of theirs: what was removed comes back by a pull, as it
// would from a registry, also offline.
func (s *Store) pullBuiltin(ctx context.Context, named reference.Named, platform *ocispec.Platform, report *reporter) (found bool, err error) {
	s.mu.Lock()
	dir := s.builtin
	s.mu.Unlock()
	if dir == "" || refDigest(named) != "" || platform != nil && !s.matcher(nil).Match(*platform) {
		return false, nil
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return false, err
	}
	for _, path := range archives {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		body, err := archiveIndex(f)
		var index ocispec.Index
		if err != nil || json.Unmarshal(body, &index) != nil || !holds(index, named) {
			continue
		}
		if _, err := f.Seek(0, 0); err != nil {
			return false, err
		}
		report.line(Progress{ID: reference.FamiliarString(named), Status: "Built into this machine: no registry is asked"})
		_, err = s.Load(ctx, f, nil, report.fn)
		return err == nil, err
	}
	return false, nil
}

// holds reports whether an archive has an image of a name.
func holds(index ocispec.Index, named reference.Named) bool {
	return slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		name := archiveName(d)
		return name != nil && dbName(name) == dbName(named)
	})
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
