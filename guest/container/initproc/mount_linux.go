package initproc

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// inRoot is how every path of the container is resolved: ".." and absolute links
// end at its root, and links of /proc that jump anywhere are refused.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// lookup opens path inside the container's root, O_PATH.
func (p *process) lookup(path string, extra uint64) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: inRoot | extra}
	for {
		fd, err := unix.Openat2(p.root, path, how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue // something was renamed meanwhile
		}
		return fd, err
	}
}

// target opens a mount target, and makes it (and the directories above) when it is
// missing: a directory, or else an empty file. Symbolic links are followed inside
// the root, also those that point to nothing yet.
func (p *process) target(path string, dir bool) (int, error) {
	fd, err := p.lookup(path, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	rest := split(path, nil)
	at := "/"
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = parent(at)
			continue
		}
		next := join(at, name)
		made, err := p.makeOne(at, name, dir || len(rest) > 0)
		if err != nil {
			return -1, failed("make "+next, err)
		}
		if !made {
			link, err := p.readlink(next)
			if err == nil {
				if links++; links > 40 {
					return -1, unix.ELOOP
				}
				if len(link) > 0 && link[0] == '/' {
					at = "/"
				}
				rest = split(link, rest)
				continue
			}
			if err != unix.EINVAL { // not a symbolic link
				return -1, err
			}
		}
		at = next
	}
	return p.lookup(at, 0)
}

// makeOne makes name in the directory at; made is false when it is there already.
func (p *process) makeOne(at, name string, dir bool) (made bool, err error) {
	parent, err := p.lookup(at, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(parent)
	if dir {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		err = unix.Mknodat(parent, name, unix.S_IFREG|0o644, 0)
	}
	if err == unix.EEXIST || err == unix.EROFS && p.exists(parent, name) {
		return false, nil
	}
	return err == nil, err
}

func (p *process) exists(dir int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func (p *process) readlink(path string) (string, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inRoot}
	fd, err := unix.Openat2(p.root, path, how)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err == unix.ENOENT {
		err = unix.EINVAL // what the kernel says for a descriptor of something else
	}
	return string(buf[:max(n, 0)]), err
}

// split puts path's elements before rest.
func split(path string, rest []string) []string {
	var parts []string
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		if part := path[start:i]; part != "" && part != "." {
			parts = append(parts, part)
		}
		start = i + 1
	}
	return append(parts, rest...)
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

func (p *process) mountAll() error {
	for i := range p.o.Mounts {
		m := &p.o.Mounts[i]
		if err := p.mount(m); err != nil {
			return failed("mount "+m.Dest, err)
		}
	}
	return nil
}

func (p *process) mount(m *order.Mount) error {
	if m.Remount {
		return p.remount(m)
	}
	tree, dir, late, err := p.tree(m)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := p.mountPoint(m, dir)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if m.Type != "proc" && (isProc(target) && !mayCover(m.Dest) || m.Dest == "/proc" && !isProc(tree)) {
		return failed("nothing may be mounted over or inside /proc", unix.EPERM)
	}
	if m.CopyUp {
		if err := copyUp(target, tree); err != nil {
			return failed("copy the image's files up", err)
		}
	}
	if err := attach(tree, target); err != nil {
		return failed("attach", err)
	}
	if m.Propagation != 0 {
		flags := uint(unix.AT_EMPTY_PATH)
		if m.RecProp {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", flags, &unix.MountAttr{Propagation: m.Propagation}); err != nil {
			return failed("set the propagation", err)
		}
	}
	if late {
		p.lateRO = append(p.lateRO, m.Dest)
	}
	return nil
}

// isProc reports whether a file lies in a proc file system.
func isProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// mayCover reports whether a path names a file of /proc that other content may stand
// over: what tells of the machine's size and load, which some want to be told of the
// container's, and what Docker's runtime lets through besides. What is written
// elsewhere in /proc is meant for the kernel, and must reach it.
func mayCover(path string) bool {
	switch path {
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
		"/proc/sys/crypto/fips_enabled", "/proc/sys/kernel/ns_last_pid":
		return true
	}
	return false
}

// mountPoint opens where m goes. proc and sysfs must not be reached by a symbolic
// link: an image could make the engine mask the wrong files with one.
func (p *process) mountPoint(m *order.Mount, dir bool) (int, error) {
	target, err := p.target(m.Dest, dir)
	if err != nil {
		return -1, err
	}
	if m.Type == "proc" || m.Type == "sysfs" {
		direct, err := p.lookup(m.Dest, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			unix.Close(target)
			return -1, failed("a symbolic link in the path of "+m.Type, err)
		}
		unix.Close(direct)
	}
	return target, nil
}

// tree makes the detached mount: a new file system, or a clone of an existing
// tree. late says that it must become read-only only when the rest is in place.
func (p *process) tree(m *order.Mount) (fd int, dir, late bool, err error) {
	if m.Type != "" {
		attrs := m.Attrs
		if m.Type == "tmpfs" && attrs&unix.MOUNT_ATTR_RDONLY != 0 {
			attrs, late = attrs&^unix.MOUNT_ATTR_RDONLY, true
		}
		fd, err = newMount(m.Type, m.Source, m.Params, int(attrs))
		if m.Type == "sysfs" && errnoOf(err) == unix.EPERM {
			// A network namespace of somebody else's user namespace: the machine's
			// sysfs, read-only, is what remains.
			fd, err = cloneTree("/sys", true)
			if err == nil {
				err = setAttrs(fd, m.Attrs|unix.MOUNT_ATTR_RDONLY, 0, true)
			}
		}
		return fd, true, late, err
	}
	if tree := p.file(m.Tree); tree != order.None {
		fd, err = unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, 0)
	} else {
		fd, err = cloneTree(m.Source, m.Recursive)
	}
	if err != nil {
		return -1, false, false, failed("source "+m.Source, err)
	}
	if m.Attrs|m.Clear != 0 {
		err = setAttrs(fd, m.Attrs, m.Clear, false)
	}
	if err == nil && m.RecAttrs|m.RecClear != 0 {
		err = setAttrs(fd, m.RecAttrs, m.RecClear, true)
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, false, failed("set mount attributes", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, false, nil
}

func cloneTree(source string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, source, flags)
}

func setAttrs(fd int, set, clear uint64, recursive bool) error {
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		clear |= unix.MOUNT_ATTR__ATIME // the access time modes are one field
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear})
}

func (p *process) remount(m *order.Mount) error {
	fd, err := p.lookup(m.Dest, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setAttrs(fd, m.Attrs, m.Clear, false)
}

// newMount makes a new file system and a detached mount of it.
func newMount(fstype, source string, params []order.Pair, attrs int) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, failed("file system "+fstype, err)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, failed("source "+source, fsError(fs, err))
		}
	}
	for _, kv := range params {
		if kv.Value == "" {
			err = unix.FsconfigSetFlag(fs, kv.Key)
		} else {
			err = unix.FsconfigSetString(fs, kv.Key, kv.Value)
		}
		if err != nil {
			return -1, failed("option "+kv.Key, fsError(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
}

// fsError adds what the file system itself says about a failure, if anything.
func fsError(fs int, err error) error {
	var buf [512]byte
	n, rerr := unix.Read(fs, buf[:])
	if rerr != nil || n < 3 {
		return err
	}
	msg := string(buf[2:n]) // "e " before the text
	for len(msg) > 0 && msg[len(msg)-1] == '\n' {
		msg = msg[:len(msg)-1]
	}
	return failed(msg, err)
}

// devices makes the device nodes and links of /dev.
func (p *process) devices() error {
	if len(p.o.Devices) == 0 {
		return nil
	}
	for i := range p.o.Devices {
		if err := p.device(&p.o.Devices[i]); err != nil {
			return failed("device "+p.o.Devices[i].Path, err)
		}
	}
	links := [...][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"}, {"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
	}
	dev, err := p.lookup("/dev", 0)
	if err != nil {
		return failed("/dev", err)
	}
	defer unix.Close(dev)
	for _, l := range links {
		if l[0] == "ptmx" {
			_ = unix.Unlinkat(dev, l[0], 0) // a device node of the image is of the wrong devpts
		}
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil && err != unix.EEXIST {
			return failed("link /dev/"+l[0], err)
		}
	}
	return nil
}

func (p *process) device(d *order.Device) error {
	if p.o.BindDevices {
		return p.bindDevice(d)
	}
	dir, err := p.target(parent(d.Path), true)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := base(d.Path)
	err = unix.Mknodat(dir, name, d.Mode, int(d.Dev))
	switch err {
	case nil:
	case unix.EEXIST:
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == d.Mode&unix.S_IFMT && st.Rdev == d.Dev {
			return nil // bind-mounted by the specification, or made by the image
		}
		return failed("something else is there", unix.EEXIST)
	default:
		return err
	}
	if d.UID|d.GID == 0 {
		return nil
	}
	return unix.Fchownat(dir, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
}

func (p *process) bindDevice(d *order.Device) error {
	if d.Mode&unix.S_IFMT == unix.S_IFIFO {
		dir, err := p.target(parent(d.Path), true)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.Mknodat(dir, base(d.Path), d.Mode, 0)
	}
	tree, err := cloneTree(d.Path, false)
	if err != nil {
		return failed("of the machine", err)
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || st.Rdev != d.Dev {
		return &failure{what: "the machine's " + d.Path + " is device " +
			strconv.Itoa(int(unix.Major(st.Rdev))) + ":" + strconv.Itoa(int(unix.Minor(st.Rdev)))}
	}
	target, err := p.target(d.Path, false)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(tree, target)
}

func base(path string) string {
	if dir := parent(path); dir != "/" {
		return path[len(dir)+1:]
	}
	return path[1:]
}
