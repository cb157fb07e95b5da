package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/ident"
	"github.com/berthvm/berth/guest/image/rootfs"
)

const (
	// upperdirLabel is overlay.WithUpperdirLabel's.
	upperdirLabel = "containerd.io/snapshot/overlay.upperdir"
	// usedPrefix starts the names of leases that keep images in use; the
	// manifest's digest follows.
	usedPrefix = "used-"
)

// rootfsTable is what the store knows of containers' roots. What is on the disk
// is a directory for each, in which a symbolic link, made last, holds what there
// is to remember: a link is in the filesystem's journal as a whole, so that a power
// cut never leaves half a record, and needs no flush.
type rootfsTable struct {
	// gate is held for reading while a root is made, for writing while unused
	// leases are looked for: a lease is not dropped under a new root.
	gate sync.RWMutex

	mu    sync.Mutex // guards what follows; inside gate
	byKey map[string]Rootfs
	lower map[digest.Digest][]string // manifest → layers, top first; one lease each
	lease map[digest.Digest]bool     // manifest → there is a lease
}

// Prepare makes a container's root filesystem on an image's layers. The key is
// the container's ID. It writes to no database, but for an image's first
// container. RemoveRootfs undoes it.
func (s *Store) Prepare(ctx context.Context, key, refOrID string, opts PrepareOptions) (Rootfs, error) {
	ctx = s.ctx(ctx)
	if !ident.Name(key, 1, 128) {
		return Rootfs{}, fail(errdefs.ErrInvalidArgument, "root filesystem %q: bad name", key)
	}
	img, err := s.GetPlatform(ctx, refOrID, opts.Platform)
	if err != nil {
		return Rootfs{}, err
	}
	if img.Manifest.Digest == "" {
		return Rootfs{}, fail(errdefs.ErrNotFound, "image %s holds nothing for this platform", refOrID)
	}
	s.rootfs.gate.RLock()
	defer s.rootfs.gate.RUnlock()
	r := Rootfs{Key: key, Image: img.ID, Manifest: img.Manifest.Digest, Volatile: opts.Volatile}
	if ids := img.Spec.RootFS.DiffIDs; len(ids) > 0 {
		r.Chain = identity.ChainID(slices.Clone(ids))
	}
	if err := s.ensureUnpacked(ctx, img, r.Chain); err != nil {
		return Rootfs{}, fmt.Errorf("cannot unpack image %s: %w", refOrID, err)
	}
	if r.Lower, err = s.lowerOf(ctx, r.Manifest, r.Chain); err != nil {
		return Rootfs{}, fmt.Errorf("cannot use image %s: %w", refOrID, err)
	}
	if err := s.makeRootfs(&r); err != nil {
		return Rootfs{}, fmt.Errorf("cannot make the root filesystem of %s: %w", key, err)
	}
	s.rootfs.mu.Lock()
	s.rootfs.byKey[key] = r
	s.rootfs.mu.Unlock()
	return r, nil
}

// ensureUnpacked unpacks an image that is in the store as blobs only: the other
// platforms of an archive are.
func (s *Store) ensureUnpacked(ctx context.Context, img Image, chain digest.Digest) error {
	s.rootfs.mu.Lock()
	known := s.rootfs.lower[img.Manifest.Digest] != nil
	s.rootfs.mu.Unlock()
	if known || chain == "" {
		return nil
	}
	if _, err := s.snap.Stat(ctx, chain.String()); !errdefs.IsNotFound(err) {
		return err
	}
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.unpackMade(ctx, img.Manifest)
}

// lowerOf returns an image's layers and makes sure that they stay. The caller
// holds the gate.
func (s *Store) lowerOf(ctx context.Context, manifest, chain digest.Digest) ([]string, error) {
	key := usedPrefix + manifest.String()
	if err := s.work.Lock(ctx, key); err != nil {
		return nil, err
	}
	defer s.work.Unlock(key)
	s.rootfs.mu.Lock()
	lower, leased := s.rootfs.lower[manifest], s.rootfs.lease[manifest]
	s.rootfs.mu.Unlock()
	if lower != nil && leased {
		return lower, nil
	}
	if !leased {
		if err := s.keep(ctx, manifest, chain); err != nil {
			return nil, err
		}
	}
	lower, err := s.layerDirs(ctx, chain)
	if errdefs.IsNotFound(err) {
		if err = s.unpackLate(ctx, manifest); err == nil {
			lower, err = s.layerDirs(ctx, chain)
		}
	}
	if err != nil {
		return nil, err
	}
	s.rootfs.mu.Lock()
	s.rootfs.lower[manifest], s.rootfs.lease[manifest] = lower, true
	s.rootfs.mu.Unlock()
	return lower, nil
}

// unpackLate unpacks an image that is in the store but not unpacked: what was built
// for another machine's platform.
func (s *Store) unpackLate(ctx context.Context, manifest digest.Digest) error {
	info, err := s.content.Info(ctx, manifest)
	if err != nil {
		return err
	}
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.unpackMade(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest, Size: info.Size})
}

// keep makes the lease that holds an image in use: its manifest, by which its
// blobs are found, and its layers.
func (s *Store) keep(ctx context.Context, manifest, chain digest.Digest) error {
	l := leases.Lease{ID: usedPrefix + manifest.String()}
	if _, err := s.leases.Create(ctx, leases.WithID(l.ID)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	resources := []leases.Resource{{ID: manifest.String(), Type: "content"}}
	if chain != "" {
		resources = append(resources, leases.Resource{ID: chain.String(), Type: "snapshots/" + snapshotter})
	}
	for _, r := range resources {
		if err := s.leases.AddResource(ctx, l, r); err != nil {
			s.release(ctx, l)
			return err
		}
	}
	return nil
}

// layerDirs returns where a chain's layers are unpacked, top first.
func (s *Store) layerDirs(ctx context.Context, chain digest.Digest) ([]string, error) {
	var dirs []string
	for name := chain.String(); name != ""; {
		info, err := s.snap.Stat(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("its layers are not unpacked: %w", err)
		}
		dir := info.Labels[upperdirLabel]
		if dir == "" {
			return nil, fmt.Errorf("layer %s has no directory", name)
		}
		dirs = append(dirs, dir)
		name = info.Parent
	}
	if len(dirs) > 0 {
		return dirs, nil
	}
	empty := s.path("empty")
	if err := os.Mkdir(empty, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return []string{empty}, nil
}

// makeRootfs makes the directory of r and fills in its paths.
func (s *Store) makeRootfs(r *Rootfs) error {
	dir := s.path("rootfs", r.Key)
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return fail(errdefs.ErrAlreadyExists, "it is there")
	}
	if err != nil {
		return err
	}
	if r.Upper, r.Work, err = rootfs.Make(dir, r.Lower); err == nil {
		err = os.Symlink(formatRecord(*r), dir+"/"+recordName)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return nil
}

const (
	recordName = "record"
	// gonePrefix starts names that are no keys: roots that are being removed.
	gonePrefix = ".gone-"
)

// formatRecord returns what there is to remember of a root.
func formatRecord(r Rootfs) string {
	return fmt.Sprintf("1 %s %s %s %t", r.Image, r.Manifest, cmp.Or(r.Chain, "-"), r.Volatile)
}

// parseRecord reads what formatRecord wrote.
func parseRecord(dir, key, text string) (Rootfs, error) {
	r := Rootfs{Key: key, Upper: dir + "/fs", Work: dir + "/work"}
	fields := strings.Fields(text)
	if len(fields) != 5 || fields[0] != "1" {
		return r, fmt.Errorf("record %q: want five fields, the first 1", text)
	}
	var err error
	if r.Volatile, err = strconv.ParseBool(fields[4]); err != nil {
		return r, fmt.Errorf("record %q: %w", text, err)
	}
	for i, field := range []*digest.Digest{&r.Image, &r.Manifest, &r.Chain} {
		value := fields[i+1]
		if value == "-" && field == &r.Chain {
			continue
		}
		if *field, err = digest.Parse(value); err != nil {
			return r, fmt.Errorf("record %q: %w", text, err)
		}
	}
	return r, nil
}

// recoverRootfs reads the table from the disk and clears what is half made or
// half removed.
func (s *Store) recoverRootfs(all []leases.Lease) error {
	t := &s.rootfs
	t.byKey, t.lower, t.lease = map[string]Rootfs{}, map[digest.Digest][]string{}, map[digest.Digest]bool{}
	entries, err := os.ReadDir(s.path("rootfs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := s.path("rootfs", e.Name())
		text, err := os.Readlink(dir + "/" + recordName)
		if strings.HasPrefix(e.Name(), gonePrefix) || errors.Is(err, fs.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				s.log.Warn("cannot clear a leftover", "path", dir, "error", err)
			}
			continue
		}
		var r Rootfs
		if err == nil {
			r, err = parseRecord(dir, e.Name(), text)
		}
		if err != nil {
			s.log.Error("a container's root filesystem is damaged", "path", dir, "error", err)
			continue
		}
		t.byKey[e.Name()] = r
	}
	for _, l := range all {
		if d, ok := strings.CutPrefix(l.ID, usedPrefix); ok {
			t.lease[digest.Digest(d)] = true
		}
	}
	return nil
}

// releaseUnused drops the leases of images that no container uses.
func (s *Store) releaseUnused(ctx context.Context) error {
	t := &s.rootfs
	t.gate.Lock()
	defer t.gate.Unlock()
	used := map[digest.Digest]bool{}
	for _, r := range t.byKey {
		used[r.Manifest] = true
	}
	for manifest := range t.lease {
		if used[manifest] {
			continue
		}
		err := s.leases.Delete(ctx, leases.Lease{ID: usedPrefix + manifest.String()})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		delete(t.lease, manifest)
		delete(t.lower, manifest)
	}
	return nil
}

// Rootfs returns a container's root filesystem that Prepare made, also in a
// former process.
func (s *Store) Rootfs(ctx context.Context, key string) (Rootfs, error) {
	s.rootfs.mu.Lock()
	r, ok := s.rootfs.byKey[key]
	s.rootfs.mu.Unlock()
	if !ok {
		return Rootfs{}, fail(errdefs.ErrNotFound, "no root filesystem %q", key)
	}
	if r.Lower != nil {
		return r, nil
	}
	s.rootfs.gate.RLock()
	defer s.rootfs.gate.RUnlock()
	var err error
	if r.Lower, err = s.lowerOf(s.ctx(ctx), r.Manifest, r.Chain); err != nil {
		return Rootfs{}, fmt.Errorf("image of %s: %w", key, err)
	}
	s.rootfs.mu.Lock()
	defer s.rootfs.mu.Unlock()
	if _, ok := s.rootfs.byKey[key]; ok {
		s.rootfs.byKey[key] = r
	}
	return r, nil
}

// RootfsKeys returns the keys of all root filesystems, sorted.
func (s *Store) RootfsKeys() []string {
	s.rootfs.mu.Lock()
	defer s.rootfs.mu.Unlock()
	keys := make([]string, 0, len(s.rootfs.byKey))
	for key := range s.rootfs.byKey {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// RemoveRootfs removes a container's root filesystem, which must not be mounted.
// The key is free at once; the files go in the background, or with the next Open.
// Removing what is not there is no error.
func (s *Store) RemoveRootfs(_ context.Context, key string) error {
	if !ident.Name(key, 1, 128) {
		return fail(errdefs.ErrInvalidArgument, "root filesystem %q: bad name", key)
	}
	s.rootfs.mu.Lock()
	delete(s.rootfs.byKey, key)
	s.rootfs.mu.Unlock()
	trash := s.path("rootfs", gonePrefix+rand.Text())
	err := os.Rename(s.path("rootfs", key), trash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove the root filesystem of %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.running.Go(func() {
		if err := os.RemoveAll(trash); err != nil {
			s.log.Warn("cannot remove a root filesystem", "path", trash, "error", err)
		}
	})
	return nil
}

// Usage measures a container's use of the disk.
func (s *Store) Usage(ctx context.Context, key string) (Usage, error) {
	r, err := s.Rootfs(ctx, key)
	if err != nil {
		return Usage{}, err
	}
	rw, err := r.Usage(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("cannot measure %s: %w", key, err)
	}
	layers, err := s.chainSize(s.ctx(ctx), r.Chain)
	return Usage{RW: rw, RootFS: rw + layers}, err
}

// Changes lists how a container differs from its image, sorted by path.
func (s *Store) Changes(ctx context.Context, key string) ([]Change, error) {
	r, err := s.Rootfs(ctx, key)
	if err != nil {
		return nil, err
	}
	var changes []Change
	err = r.Walk(ctx, func(kind ChangeKind, path string) error {
		changes = append(changes, Change{Path: path, Kind: kind})
		return nil
	})
	return changes, err
}

// chainSize returns what a chain of layers takes unpacked.
func (s *Store) chainSize(ctx context.Context, chain digest.Digest) (int64, error) {
	var total int64
	for name := chain.String(); name != ""; {
		usage, err := s.snap.Usage(ctx, name)
		if err != nil {
			return 0, err
		}
		info, err := s.snap.Stat(ctx, name)
		if err != nil {
			return 0, err
		}
		total += usage.Size
		name = info.Parent
	}
	return total, nil
}
