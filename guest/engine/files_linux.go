package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/engine/archive"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/runspec"
)

// withRoot calls f with the root directory of a container as its processes see
// it. That of a stopped container is mounted for the time.
func (e *Engine) withRoot(ctx context.Context, c *Container, f func(archive.Tree) error) error {
	c.mu.Lock()
	pid, alive := c.rec.State.PID, c.rec.State.Status.Alive()
	c.mu.Unlock()
	if alive {
		root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			defer root.Close()
			return f(archive.In(root))
		}
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	status := c.rec.State.Status
	c.mu.Unlock()
	switch {
	case status.Alive(): // started meanwhile
		return conflict("container %s is changing: try again", c.id)
	case status == record.Removing || status == record.Dead:
		return conflict("container %s is marked for removal", c.id)
	}
	target := c.rootfs()
	if err := e.opts.Images.Mount(ctx, c.id, target); err != nil {
		return err
	}
	defer e.unmountRootfs(c)
	if err := c.makeWorkingDir(); err != nil { // docker makes it with the container
		return err
	}
	root, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open the root of %s: %w", c.id, err)
	}
	defer root.Close()
	defer e.releaseMounts(ctx, c)
	if err := e.mountInto(ctx, c, root); err != nil {
		return err
	}
	return f(archive.In(root))
}

// mountInto puts a stopped container's volumes and binds in their places, which
// are made where the container never ran. withRoot's caller unmounts them.
func (e *Engine) mountInto(ctx context.Context, c *Container, root *os.File) error {
	for _, m := range c.rec.Mounts {
		if m.Type == mount.TypeTmpfs {
			continue
		}
		s, source, err := e.mountOf(ctx, c, m)
		if err != nil {
			return err
		}
		err = attachAt(root, m.Destination, s.Source, !m.RW)
		if source != nil {
			source.Close()
		}
		if err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
	}
	return nil
}

// attachAt mounts what source names at a path inside root, whose links do not
// lead out of it.
func attachAt(root *os.File, dest, source string, readOnly bool) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if readOnly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return err
		}
	}
	place, err := placeIn(root, dest, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer place.Close()
	return unix.MoveMount(tree, "", int(place.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// placeIn opens a mount's place inside root, and makes it if need be: a directory,
// or else an empty file.
func placeIn(root *os.File, dest string, dir bool) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), dest, how)
	if err == nil {
		return os.NewFile(uintptr(fd), dest), nil
	}
	if err != unix.ENOENT {
		return nil, err
	}
	if dir {
		return pathrs.MkdirAllHandle(root, dest, 0o755)
	}
	parent, err := pathrs.MkdirAllHandle(root, path.Dir(dest), 0o755)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	fd, err = unix.Openat(int(parent.Fd()), path.Base(dest), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dest), nil
}

func pathError(err error, path, name string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("Could not find the file %s in container %s", path, name))
	case errors.Is(err, unix.ENOTDIR):
		return invalid("%s in container %s is not a directory", path, name)
	}
	return err
}

func pathStat(s archive.Stat) apicontainer.PathStat {
	return apicontainer.PathStat{Name: s.Name, Size: s.Size, Mode: s.Mode, Mtime: s.Mtime, LinkTarget: s.Target}
}

// StatPath describes a file of a container.
func (e *Engine) StatPath(ctx context.Context, name, path string) (apicontainer.PathStat, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return apicontainer.PathStat{}, err
	}
	var out apicontainer.PathStat
	err = e.withRoot(ctx, c, func(t archive.Tree) error {
		s, err := t.Stat(path)
		out = pathStat(s)
		return pathError(err, path, name)
	})
	return out, err
}

// CopyFrom writes a file or directory of a container as a tar stream. begin is
// called first, when nothing can be refused any more, and returns where to.
func (e *Engine) CopyFrom(ctx context.Context, name, path string, begin func(apicontainer.PathStat) io.Writer) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	return e.withRoot(ctx, c, func(t archive.Tree) error {
		s, err := t.Stat(path)
		if err != nil {
			return pathError(err, path, name)
		}
		c.mu.Lock()
		c.event(events.ActionArchivePath, "path", path)
		c.mu.Unlock()
		return t.Pack(ctx, path, nameIn(path), begin(pathStat(s)))
	})
}

// nameIn is what an archive of a path calls it: by its last component, of which a
// dot stands for what is in the directory.
func nameIn(name string) string {
	trimmed := strings.TrimRight(name, "/")
	switch {
	case trimmed == "":
		return "/"
	case path.Base(trimmed) == ".":
		return "."
	}
	return path.Base(path.Clean("/" + trimmed))
}

// CopyTo extracts a tar stream into a directory of a container.
func (e *Engine) CopyTo(ctx context.Context, name, path string, r io.Reader, keepKind, asUser bool) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	return e.withRoot(ctx, c, func(t archive.Tree) error {
		_, err := t.Stat(strings.TrimSuffix(path, "/") + "/")
		if errors.Is(err, unix.ENOTDIR) {
			return invalid("extraction point is not a directory")
		}
		if err != nil {
			return pathError(err, path, name)
		}
		if err := checkWritable(c.rec, path); err != nil {
			return err
		}
		o := archive.UnpackOptions{KeepKind: keepKind}
		if asUser && c.rec.Config.User != "" {
			u, _, err := runspec.User(c.rootfs(), c.rec.Config.User, nil)
			if err != nil {
				return err
			}
			o.Owner = &[2]int{int(u.UID), int(u.GID)}
		}
		if err := t.Unpack(ctx, path, r, o); err != nil {
			return pathError(err, path, name)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.event(events.ActionExtractToDir, "path", path)
		return nil
	})
}

// checkWritable refuses to write to a path that lies on a read-only mount, or
// elsewhere in a read-only root file system.
func checkWritable(rec *record.Record, name string) error {
	name = path.Clean("/" + name)
	var on *record.Mount // the innermost
	for i, m := range rec.Mounts {
		if (name == m.Destination || strings.HasPrefix(name, m.Destination+"/")) &&
			(on == nil || len(m.Destination) > len(on.Destination)) {
			on = &rec.Mounts[i]
		}
	}
	switch {
	case on != nil && !on.RW:
		return invalid("mounted volume is marked read-only")
	case on == nil && rec.HostConfig.ReadonlyRootfs:
		return invalid("container rootfs is marked read-only")
	}
	return nil
}

// Export writes a container's own root file system, without what is mounted in
// it, as a tar stream. begin is called first, when nothing can be refused any
// more.
func (e *Engine) Export(ctx context.Context, name string, begin func() io.Writer) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	root, err := e.ownRoot(ctx, c)
	if err != nil {
		return err
	}
	defer root.Close()
	c.mu.Lock()
	c.event(events.ActionExport)
	c.mu.Unlock()
	return archive.In(root).Pack(ctx, "/", "", begin())
}

// ownRoot opens a container's own root file system. The file holds it: whoever reads
// at leisure keeps the container from nothing.
func (e *Engine) ownRoot(ctx context.Context, c *Container) (*os.File, error) {
	c.op.Lock() // the mount must not go away meanwhile
	defer c.op.Unlock()
	c.mu.Lock()
	alive := c.rec.State.Status.Alive()
	c.mu.Unlock()
	if !alive {
		if err := e.opts.Images.Mount(ctx, c.id, c.rootfs()); err != nil {
			return nil, err
		}
		defer e.unmountRootfs(c)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.rootfs(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open the root of %s: %w", c.id, err)
	}
	return os.NewFile(uintptr(fd), c.rootfs()), nil
}

// Changes lists how a container's root file system differs from its image.
func (e *Engine) Changes(ctx context.Context, name string) ([]apicontainer.FilesystemChange, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, err
	}
	list, err := e.opts.Images.Changes(ctx, c.id)
	if err != nil {
		return nil, err
	}
	var out []apicontainer.FilesystemChange
	for _, ch := range list {
		out = append(out, apicontainer.FilesystemChange{Kind: apicontainer.ChangeType(ch.Kind), Path: ch.Path})
	}
	return out, nil
}
