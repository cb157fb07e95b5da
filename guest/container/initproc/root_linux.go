package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// build makes the container around this process.
func (p *process) build() error {
	o := p.o
	steps := []func() error{
		p.namespaces,
		p.joinMounts,
		p.openRoot,
		p.mountAll,
		p.devices,
		p.console,
		p.parentHooks,
		p.hideAndProtect,
		p.createHooks,
		p.pivot,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if o.RootRO {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(p.root, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return failed("make the root file system read-only", err)
		}
	}
	return nil
}

// namespaces configures the namespaces that have something to configure.
func (p *process) namespaces() error {
	o := p.o
	if o.NewNet {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return failed("make a network namespace", err)
		}
	}
	for _, j := range o.Joins {
		if err := unix.Setns(p.file(j.File), j.Kind); err != nil {
			return failed("join a namespace", err)
		}
	}
	if o.NewTime {
		if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
			return failed("make a time namespace", err)
		}
		if o.TimeOffsets != "" {
			if err := writeFile("/proc/self/timens_offsets", o.TimeOffsets); err != nil {
				return failed("linux.timeOffsets", err)
			}
		}
	}
	if o.Loopback {
		if err := loopbackUp(); err != nil {
			return failed("switch the loopback interface on", err)
		}
	}
	for _, kv := range o.Sysctls {
		if err := writeFile("/proc/sys/"+kv.Key, kv.Value); err != nil {
			return failed("linux.sysctl: "+kv.Key+" = "+kv.Value, err)
		}
	}
	if o.Hostname != "" {
		if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
			return failed("set the hostname", err)
		}
	}
	if o.Domainname != "" {
		if err := unix.Setdomainname([]byte(o.Domainname)); err != nil {
			return failed("set the domain name", err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// openRoot makes the root file system a mount of its own, in a mount namespace
// from which nothing flows back to the machine.
func (p *process) openRoot() error {
	o := p.o
	if tree := p.file(o.RootTree); tree != order.None {
		// A warm process: all there is is the small root of retreat.
		if err := unix.MoveMount(tree, "", unix.AT_FDCWD, warmRootfs, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return failed("attach rootfs "+o.Rootfs, err)
		}
		p.root = tree
		return p.findDevNull()
	}
	if o.Guest {
		return p.openGuestRoot()
	}
	if !o.ShareRoot {
		attr := &unix.MountAttr{Propagation: unix.MS_SLAVE}
		if o.Propagation == unix.MS_PRIVATE {
			attr.Propagation = unix.MS_PRIVATE
		}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, attr); err != nil {
			return failed("detach from the machine's mounts", err)
		}
	} else if err := makeParentPrivate(o.Rootfs); err != nil {
		return failed("rootfs "+o.Rootfs, err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, o.Rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return failed("rootfs "+o.Rootfs, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, o.Rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed("attach rootfs "+o.Rootfs, err)
	}
	p.root = tree
	return p.findDevNull()
}

// openGuestRoot does it in a mount namespace that has other users, whose mounts
// must stay as they are. What is mounted below the root stays there after the
// container, for its deletion to unmount.
func (p *process) openGuestRoot() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, p.o.Rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return failed("rootfs "+p.o.Rootfs, err)
	}
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return failed("detach from the machine's mounts", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, p.o.Rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed("attach rootfs "+p.o.Rootfs, err)
	}
	p.root = tree
	return p.findDevNull()
}

func (p *process) findDevNull() (err error) {
	p.devnull, err = openDevNull()
	return failed("/dev/null of the machine", err)
}

// makeParentPrivate makes the mount that holds path private: pivot_root refuses a
// new root below a shared mount. Its mount point is where the mount's ID changes
// on the way up.
func makeParentPrivate(path string) error {
	id, err := mountID(path)
	if err != nil {
		return err
	}
	for path != "/" {
		up := parent(path)
		upID, err := mountID(up)
		if err != nil {
			return err
		}
		if upID != id {
			break
		}
		path = up
	}
	return unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}

// openDevNull makes sure that what masks files is the null device.
func openDevNull() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return -1, &failure{what: "not the null device"}
	}
	return fd, nil
}

// pivot makes the container's root the process's root and forgets the machine's.
func (p *process) pivot() error {
	change := p.pivotRoot
	if p.o.Guest {
		change = p.changeRoot
	}
	if err := change(); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return failed("enter the new root", err)
	}
	if p.o.Propagation != 0 {
		attr := &unix.MountAttr{Propagation: p.o.Propagation}
		flags := uint(unix.AT_EMPTY_PATH)
		if p.o.PropRec {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(p.root, "", flags, attr); err != nil {
			return failed("linux.rootfsPropagation", err)
		}
	}
	return nil
}

// changeRoot leaves the namespace's root to its other users.
func (p *process) changeRoot() error {
	if err := unix.Fchdir(p.root); err != nil {
		return failed("enter the root file system", err)
	}
	return failed("chroot", unix.Chroot("."))
}

func (p *process) pivotRoot() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open the old root", err)
	}
	if err := unix.Fchdir(p.root); err != nil {
		return failed("enter the root file system", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return failed("pivot_root", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return failed("enter the old root", err)
	}
	// Unmounting must not reach the machine's own mounts.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return failed("detach the old root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return failed("unmount the old root", err)
	}
	unix.Close(old)
	return nil
}

// hideAndProtect lays the masks, then makes read-only what was waiting for it.
func (p *process) hideAndProtect() error {
	for _, path := range p.o.Readonly {
		if err := p.readonly(path); err != nil {
			return failed("linux.readonlyPaths: "+path, err)
		}
	}
	var empty = -1
	for _, path := range p.o.Masked {
		if err := p.mask(path, &empty); err != nil {
			return failed("linux.maskedPaths: "+path, err)
		}
	}
	if empty >= 0 {
		unix.Close(empty)
	}
	for _, path := range p.lateRO {
		fd, err := p.lookup(path, 0)
		if err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
			unix.Close(fd)
		}
		if err != nil {
			return failed("make "+path+" read-only", err)
		}
	}
	return nil
}

// readonly binds path onto itself, read-only. What does not exist needs no
// protection.
func (p *process) readonly(path string) error {
	target, err := p.lookup(path, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := unix.OpenTree(target, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return err
	}
	return attach(tree, target)
}

// mask covers a file with the null device and a directory with an empty one.
// All directories share one read-only tmpfs, made when it is first needed.
func (p *process) mask(path string, empty *int) error {
	target, err := p.lookup(path, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	source := p.devnull
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if *empty < 0 {
			*empty, err = newMount("tmpfs", "tmpfs", []order.Pair{{Key: "nr_inodes", Value: "1"}, {Key: "mode", Value: "0555"}},
				unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
			if err != nil {
				return err
			}
			// The first mask takes the mount itself; clones can only be made of what
			// is attached.
			return attach(*empty, target)
		}
		source = *empty
	}
	tree, err := unix.OpenTree(source, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	// The null device may be the machine's own, whose mode a container could else
	// change for all.
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return attach(tree, target)
}

func attach(tree, target int) error {
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

func parent(path string) string {
	i := len(path) - 1
	for i > 0 && path[i] != '/' {
		i--
	}
	if i <= 0 {
		return "/"
	}
	return path[:i]
}
