package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/engine/mountspec"
	"github.com/berthvm/berth/guest/engine/record"
)

// Volumes is what the engine needs of volumes.
type Volumes interface {
	// Ensure makes the volume unless it exists; an empty name is a new anonymous
	// one. It returns the name, the directory that will hold its content, and
	// whether the volume is new.
	Ensure(ctx context.Context, name, driver string, options, labels map[string]string) (string, string, bool, error)
	// Mount makes a volume's content appear and returns where; holder keeps it
	// there until Unmount.
	Mount(ctx context.Context, name, holder string) (string, error)
	Unmount(ctx context.Context, name, holder string) error
	// Hold makes holder one that has mounted the volume already, in the time of an
	// earlier engine.
	Hold(name, holder string)
	// Remove removes a volume that no container has.
	Remove(ctx context.Context, name string, force bool) error
}

// resolveMounts works out all mounts of a new container, and makes its volumes and
// the root file systems of its image mounts. With flat, binds that are read-only
// are so without the mounts below them.
func (e *Engine) resolveMounts(ctx context.Context, rec *record.Record, flat bool) ([]record.Mount, error) {
	lent, err := e.volumesFrom(ctx, rec.HostConfig.VolumesFrom)
	if err != nil {
		return nil, err
	}
	all, err := mountspec.Parse(rec.Config, rec.HostConfig, lent)
	if err != nil {
		return nil, err
	}
	for i := range all {
		m := &all[i]
		if flat && m.Type == mount.TypeBind && !m.RW {
			m.ReadOnly = record.ReadOnlyTop
		}
		if m.Type == mount.TypeImage {
			m.Key = rec.ID + keySeparator + strconv.Itoa(i)
		}
		if err := e.resolveMount(ctx, rec, m); err != nil {
			rec.Mounts = all[:i]
			e.releaseVolumes(context.WithoutCancel(ctx), rec, true)
			_ = e.removeRoots(context.WithoutCancel(ctx), rec)
			return nil, err
		}
	}
	return all, nil
}

// keySeparator is between a container's ID and the number of an image mount in the
// key of the mount's root file system.
const keySeparator = "."

// resolveMount checks a bind's source, and makes a volume or the root file system
// of an image mount.
func (e *Engine) resolveMount(ctx context.Context, rec *record.Record, m *record.Mount) error {
	switch m.Type {
	case mount.TypeBind:
		return e.checkBind(ctx, m)
	case mount.TypeImage:
		return e.resolveImage(ctx, m)
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
		driver := cmp.Or(m.Driver, "local")
		name, source, created, err := e.opts.Volumes.Ensure(ctx, m.Name, driver, options, labels)
		if err != nil {
			return err
		}
		if created {
			e.publish(events.VolumeEventType, events.ActionCreate, name, map[string]string{"driver": driver})
		}
		m.Name, m.Source, m.Driver = name, source, driver
	}
	return nil
}

// resolveImage makes a root file system of its own for each mount: nobody writes
// to it.
func (e *Engine) resolveImage(ctx context.Context, m *record.Mount) error {
	ref := cmp.Or(m.ImageID, m.Name) // --volumes-from: the image that the other has
	img, err := e.opts.Images.GetPlatform(ctx, ref, nil)
	if err != nil {
		return err
	}
	if err := e.opts.Images.Prepare(ctx, m.Key, ref, nil, true); err != nil {
		return err
	}
	m.ImageID, m.Source = img.ID.String(), filepath.Join(e.opts.RunDir, "images", m.Key)
	return nil
}

// removeRoots removes the root file system of a container and those of its image
// mounts. None may be mounted.
func (e *Engine) removeRoots(ctx context.Context, rec *record.Record) error {
	err := e.opts.Images.RemoveRootfs(ctx, rec.ID)
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeImage {
			err = errors.Join(err, e.opts.Images.RemoveRootfs(ctx, m.Key))
		}
	}
	return err
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
		name, readOnly, err := mountspec.ParseVolumesFrom(spec)
		if err != nil {
			return nil, err
		}
		c, err := e.find(ctx, name)
		if err != nil {
			return nil, invalid("%v", err)
		}
		for _, m := range c.rec.Mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.NoCopy = true
			m.RW = m.RW && !readOnly
			all = append(all, m)
		}
	}
	return all, nil
}

// populate fills the new container's volumes, where they are empty, with what the
// image has in their places: once, so that what a user removes stays removed.
func (e *Engine) populate(ctx context.Context, c *Container) error {
	mounted := false
	defer func() {
		if mounted {
			e.unmountRootfs(c)
		}
		e.releaseMounts(context.WithoutCancel(ctx), c)
	}()
	for _, m := range c.rec.Mounts {
		if m.Type != mount.TypeVolume || m.NoCopy {
			continue
		}
		volume, err := e.openVolume(ctx, c, m)
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			continue // there is no such path in the volume: the start will say so
		}
		if err != nil {
			return err
		}
		if !mounted {
			if err = e.opts.Images.Mount(ctx, c.id, c.rootfs()); err == nil {
				mounted = true
			}
		}
		if err == nil {
			err = copyUp(c.rootfs(), m.Destination, procPath(volume))
		}
		volume.Close()
		if err != nil {
			return fmt.Errorf("copy the image's %s to the volume %s: %w", m.Destination, m.Name, err)
		}
	}
	return nil
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
		if m.Type == mount.TypeVolume {
			e.publish(events.VolumeEventType, events.ActionMount, m.Name, map[string]string{"driver": m.Driver, "container": c.id,
				"destination": m.Destination, "read/write": strconv.FormatBool(m.RW), "propagation": string(m.Propagation)})
		}
	}
	options := []string{"bind", "rprivate"}
	if c.rec.HostConfig.ReadonlyRootfs {
		options = append(options, "ro")
	}
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if dest := "/etc/" + name; !taken[dest] {
			out = append(out, specs.Mount{Destination: dest, Type: "bind", Source: filepath.Join(c.dir, name), Options: options})
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
	switch m.Type {
	case mount.TypeBind:
		source, opened, err = e.openBind(ctx, &m)
	case mount.TypeVolume:
		opened, err = e.openVolume(ctx, c, m)
	case mount.TypeImage:
		opened, err = e.openImage(ctx, m)
	}
	if err != nil {
		return specs.Mount{}, nil, err
	}
	if m.Type != mount.TypeBind {
		source = procPath(opened)
	}
	if spreads(m.Propagation) && opened != nil {
		if err := shareMount(opened); err != nil {
			opened.Close()
			return specs.Mount{}, nil, internal(fmt.Errorf("cannot propagate mounts from and to %s: %w", m.Source, err))
		}
	}
	bind := "rbind"
	if m.Flat {
		bind = "bind"
	}
	opts := []string{bind, string(cmp.Or(m.Propagation, mount.PropagationRPrivate))}
	switch {
	case m.Type == mount.TypeBind && isDevice(m.Source):
		opts = append(opts, "ro") // it can be written to all the same; its mode is every container's
	case m.RW:
	case m.ReadOnly == record.ReadOnlyTop:
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rro")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: opts}, opened, nil
}

// openVolume makes a volume's content appear and opens it, or the path below it
// that the mount names. The container holds the volume until releaseMounts.
func (e *Engine) openVolume(ctx context.Context, c *Container, m record.Mount) (*os.File, error) {
	dir, err := e.opts.Volumes.Mount(ctx, m.Name, c.id)
	if err != nil {
		return nil, fmt.Errorf("error while mounting volume '%s': %w", m.Source, err)
	}
	return openBelow(dir, m.Subpath)
}

func (e *Engine) openImage(ctx context.Context, m record.Mount) (*os.File, error) {
	if err := e.opts.Images.Mount(ctx, m.Key, m.Source); err != nil {
		return nil, err
	}
	return openBelow(m.Source, m.Subpath)
}

// openBelow opens a path below a directory, O_PATH. Its content is not ours: no
// symbolic link may lead out of the directory, whoever changes it meanwhile.
func openBelow(dir, sub string) (*os.File, error) {
	base, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil || sub == "" {
		return base, err
	}
	defer base.Close()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(base.Fd()), sub, how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), path.Join(dir, sub)), nil
		case unix.EAGAIN, unix.EINTR: // a rename raced with the look-up
		case unix.EXDEV:
			return nil, invalid("path concatenation escapes the base directory, base: %s, subpath: %s", dir, sub)
		default:
			return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("cannot access path %s: %v", path.Join(dir, sub), err))
		}
	}
}

// spreads says whether mounts in the machine are to be seen in the container, or
// the other way round.
func spreads(p mount.Propagation) bool {
	switch p {
	case mount.PropagationShared, mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave:
		return true
	}
	return false
}

// shareMount makes the machine's mount that holds f one that others can share. They
// are private, for nearly nobody asks.
func shareMount(f *os.File) error {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	point, shared, err := findMount(string(table), st.Mnt_id)
	if err != nil || shared {
		return err
	}
	return unix.Mount("", point, "", unix.MS_SHARED, "")
}

// findMount returns the mount point of the mount with an ID, and whether it is
// shared, from the lines of /proc/PID/mountinfo.
func findMount(table string, id uint64) (point string, shared bool, err error) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != strconv.FormatUint(id, 10) {
			continue
		}
		point, err := strconv.Unquote(`"` + strings.ReplaceAll(fields[4], `"`, `\"`) + `"`) // octal escapes
		return point, strings.HasPrefix(fields[6], "shared:"), err
	}
	return "", false, errors.New("the mount is not in the machine's namespace")
}

// procPath is a path for an open file that is good as long as it is open.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// copyUp fills an empty volume with what the image has in its place.
func copyUp(rootfs, dest, volume string) error {
	entries, err := os.ReadDir(volume)
	if errors.Is(err, unix.ENOTDIR) { // a file below the volume
		return nil
	}
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
		var err error
		switch m.Type {
		case mount.TypeVolume:
			err = e.opts.Volumes.Unmount(ctx, m.Name, c.id)
		case mount.TypeImage:
			if err = e.opts.Images.Unmount(m.Source); err == nil {
				_ = os.Remove(m.Source)
			}
		}
		if err != nil {
			e.log.Warn("cannot unmount", "mount", m.Destination, "container", c.id, "error", err)
		}
	}
	if c.rec.HostConfig.IpcMode.IsShareable() {
		if err := e.opts.Images.Unmount(e.shmDir(c.id)); err != nil {
			e.log.Warn("cannot unmount", "mount", "/dev/shm", "container", c.id, "error", err)
		}
		_ = os.Remove(e.shmDir(c.id))
	}
}

// shmDir is where the /dev/shm of a container lies whose IPC others may join: what
// is mounted in its own namespace only could not be bound into another's.
func (e *Engine) shmDir(id string) string { return filepath.Join(e.opts.RunDir, "shm", id) }

// mountShm makes a container's /dev/shm for others to join. releaseMounts takes it
// back.
func (e *Engine) mountShm(c *Container) (string, error) {
	dir := e.shmDir(c.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	data := "mode=1777,size=" + strconv.FormatInt(c.rec.HostConfig.ShmSize, 10)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return "", fmt.Errorf("mounting shm tmpfs: %w", err)
	}
	return dir, nil
}

// releaseVolumes removes the anonymous volumes of a container that goes, but for
// those that another has too.
func (e *Engine) releaseVolumes(ctx context.Context, rec *record.Record, remove bool) {
	for _, m := range rec.Mounts {
		other := func(user string) bool { return user != rec.ID }
		if m.Type != mount.TypeVolume || !m.Anon || !remove || m.Name == "" || slices.ContainsFunc(e.VolumeUsers(m.Name), other) {
			continue
		}
		if err := e.opts.Volumes.Remove(ctx, m.Name, true); err != nil {
			e.log.Warn("cannot remove volume", "volume", m.Name, "error", err)
			continue
		}
		e.publish(events.VolumeEventType, events.ActionDestroy, m.Name, map[string]string{"driver": m.Driver})
	}
}
