package engine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/continuity/fs"
	securejoin "github.com/cyphar/filepath-securejoin"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/engine/mountspec"
	"github.com/berthvm/berth/guest/engine/record"
)

// Volumes is what the engine needs of volumes.
type Volumes interface {
	// Ensure makes the volume unless it exists; an empty name is a new anonymous
	// one. It returns the name and the directory that will hold its content.
	Ensure(ctx context.Context, name, driver string, options, labels map[string]string) (string, string, error)
	// Mount makes a volume's content appear and returns where; holder keeps it
	// there until Unmount.
	Mount(ctx context.Context, name, holder string) (string, error)
	Unmount(ctx context.Context, name, holder string) error
	// Remove removes a volume that no container has.
	Remove(ctx context.Context, name string, force bool) error
}

// resolveMounts works out all mounts of a new container, and makes its volumes.
func (e *Engine) resolveMounts(ctx context.Context, rec *record.Record) ([]record.Mount, error) {
	lent, err := e.volumesFrom(ctx, rec.HostConfig.VolumesFrom)
	if err != nil {
		return nil, err
	}
	all, err := mountspec.Parse(rec.Config, rec.HostConfig, lent)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := e.resolveMount(ctx, rec, &all[i]); err != nil {
			rec.Mounts = all[:i]
			e.releaseVolumes(context.WithoutCancel(ctx), rec, true)
			return nil, err
		}
	}
	return all, nil
}

// resolveMount checks a bind's source and makes a volume.
func (e *Engine) resolveMount(ctx context.Context, rec *record.Record, m *record.Mount) error {
	switch m.Type {
	case mount.TypeBind:
		return e.checkBind(ctx, m)
	case mount.TypeVolume:
		if e.opts.Volumes == nil {
			return invalid("volumes are not available")
		}
		if m.Source != "" && m.Driver == "" {
			return nil // --volumes-from: it exists
		}
		var options, labels map[string]string
		if o := volumeOptions(rec.HostConfig, m.Destination); o != nil {
			labels = o.Labels
			if o.DriverConfig != nil {
				options = o.DriverConfig.Options
			}
		}
		driver := cmp.Or(m.Driver, rec.HostConfig.VolumeDriver, "local")
		name, source, err := e.opts.Volumes.Ensure(ctx, m.Name, driver, options, labels)
		if err != nil {
			return err
		}
		m.Name, m.Source, m.Driver = name, source, driver
	}
	return nil
}

func volumeOptions(h *apicontainer.HostConfig, dest string) *mount.VolumeOptions {
	for _, m := range h.Mounts {
		if path.Clean(m.Target) == dest {
			return m.VolumeOptions
		}
	}
	return nil
}

func (e *Engine) volumesFrom(ctx context.Context, from []string) ([]record.Mount, error) {
	var all []record.Mount
	for _, spec := range from {
		name, mode, _ := strings.Cut(spec, ":")
		if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
			return nil, invalid("invalid mode: %s", mode)
		}
		c, err := e.find(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, m := range c.rec.Mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.Anon, m.NoCopy = false, true
			if mode == "ro" {
				m.RW = false
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// mountsOf makes the container's mounts ready and returns them in the order in
// which they nest, and the open sources of those from the host, which have to
// stay open until the container has been made. The root file system is mounted.
func (e *Engine) mountsOf(ctx context.Context, c *Container) (out []specs.Mount, sources []*os.File, err error) {
	taken := map[string]bool{}
	for _, m := range c.rec.Mounts {
		taken[m.Destination] = true
		s, source, err := e.mountOf(ctx, c, m)
		if err != nil {
			e.releaseMounts(ctx, c)
			return nil, sources, err
		}
		out = append(out, s)
		if source != nil {
			sources = append(sources, source)
		}
	}
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if dest := "/etc/" + name; !taken[dest] {
			out = append(out, specs.Mount{Destination: dest, Type: "bind", Source: filepath.Join(c.dir, name),
				Options: []string{"bind", "rprivate"}})
		}
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return out, sources, nil
}

// mountOf makes one mount ready. The file, which may be nil, is a bind's source.
func (e *Engine) mountOf(ctx context.Context, c *Container, m record.Mount) (s specs.Mount, opened *os.File, err error) {
	if m.Type == mount.TypeTmpfs {
		opts := []string{"noexec", "nosuid", "nodev"}
		if slices.Contains(m.Options, "exec") {
			opts = opts[1:]
		}
		if !m.RW {
			opts = append(opts, "ro")
		}
		return specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: append(opts, m.Options...)}, nil, nil
	}
	source := m.Source
	if m.Type == mount.TypeBind {
		if source, opened, err = e.openBind(ctx, &m); err != nil {
			return specs.Mount{}, nil, err
		}
	}
	if m.Type == mount.TypeVolume {
		dir, err := e.opts.Volumes.Mount(ctx, m.Name, c.id)
		if err != nil {
			return specs.Mount{}, nil, err
		}
		if !m.NoCopy {
			if err := copyUp(c.rootfs(), m.Destination, dir); err != nil {
				return specs.Mount{}, nil, fmt.Errorf("copy the image's %s to the volume %s: %w", m.Destination, m.Name, err)
			}
		}
		source = dir
		if m.Subpath != "" {
			if source, err = securejoin.SecureJoin(dir, m.Subpath); err != nil {
				return specs.Mount{}, nil, invalid("cannot access path %s of volume %s: %v", m.Subpath, m.Name, err)
			}
			if _, err := os.Stat(source); err != nil {
				return specs.Mount{}, nil, invalid("cannot access path %s: no such file or directory", source)
			}
		}
	}
	bind := "rbind"
	if m.Flat {
		bind = "bind"
	}
	opts := []string{bind, string(cmp.Or(m.Propagation, mount.PropagationRPrivate))}
	if !m.RW {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: opts}, opened, nil
}

// copyUp fills an empty volume with what the image has in its place.
func copyUp(rootfs, dest, volume string) error {
	entries, err := os.ReadDir(volume)
	if err != nil || len(entries) > 0 {
		return err
	}
	source, err := securejoin.SecureJoin(rootfs, dest)
	if err != nil {
		return err
	}
	info, err := os.Lstat(source)
	if err != nil || !info.IsDir() {
		return nil // the image has nothing there
	}
	return fs.CopyDir(volume, source)
}

// releaseMounts gives back what mountsOf took.
func (e *Engine) releaseMounts(ctx context.Context, c *Container) {
	for _, m := range c.rec.Mounts {
		if m.Type != mount.TypeVolume {
			continue
		}
		if err := e.opts.Volumes.Unmount(ctx, m.Name, c.id); err != nil {
			e.log.Warn("cannot unmount volume", "volume", m.Name, "error", err)
		}
	}
}

// releaseVolumes removes the anonymous volumes of a container that goes.
func (e *Engine) releaseVolumes(ctx context.Context, rec *record.Record, remove bool) {
	for _, m := range rec.Mounts {
		if m.Type != mount.TypeVolume || !m.Anon || !remove || m.Name == "" {
			continue
		}
		if err := e.opts.Volumes.Remove(ctx, m.Name, true); err != nil {
			e.log.Warn("cannot remove volume", "volume", m.Name, "error", err)
		}
	}
}
