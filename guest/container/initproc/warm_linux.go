package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// warmRootfs is where a warm process attaches a container's root.
const warmRootfs = "/rootfs"

// retreat lets go of the machine's files: a warm process lives on through other
// containers' lives, whose mounts its mount namespace would hold on to. What is
// left is a small root with the null device and a /proc of the new PID namespace.
func retreat() error {
	unix.Umask(0)
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return failed("detach from the machine's mounts", err)
	}
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	root, err := newMount("tmpfs", "tmpfs", []order.Pair{{Key: "size", Value: "64k"}, {Key: "mode", Value: "0755"}}, attrs)
	if err != nil {
		return failed("make a small root", err)
	}
	for _, dir := range []string{"dev", "proc", warmRootfs[1:]} {
		if err := unix.Mkdirat(root, dir, 0o755); err != nil {
			return failed("make a small root", err)
		}
	}
	if err := unix.Mknodat(root, "dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return failed("make a small root", err)
	}
	// Any directory will do to attach it to.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed("attach a small root", err)
	}
	proc, err := newMount("proc", "proc", nil, attrs|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return failed("make a /proc", err)
	}
	target, err := unix.Openat(root, "proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = attach(proc, target)
	}
	if err == nil {
		err = unix.Fchdir(root)
	}
	if err == nil {
		err = unix.PivotRoot(".", ".")
	}
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	for _, fd := range []int{root, proc, target} {
		unix.Close(fd)
	}
	return failed("move to a small root", err)
}
