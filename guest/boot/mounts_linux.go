package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const newRoot = "/root" // of the initramfs

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountEach(list []mount) error {
	for _, m := range list {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountEarly mounts what finding the root needs.
func mountEarly() error {
	return mountEach([]mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	})
}

// switchRoot makes the root disk's file system / and frees the initramfs. While
// it runs, nobody else may use paths.
func (m *machine) switchRoot() error {
	device, err := m.hw.findDisk(rootSerial, 5*time.Second)
	if err != nil {
		return err
	}
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := (mount{device, newRoot, "erofs", unix.MS_RDONLY | unix.MS_NODEV, ""}).do(); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	err = errors.Join(unix.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
	if err != nil {
		return fmt.Errorf("switch to the root: %w", err)
	}
	return removeBelow(old)
}

// removeBelow deletes what the initramfs holds, except directories of other
// file systems, to free its memory.
func removeBelow(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "initramfs")
	defer file.Close()
	entries, err := file.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			unix.Unlinkat(dir, e.Name(), 0)
			continue
		}
		child, err := unix.Openat(dir, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if sameDevice(dir, child) {
			err = removeBelow(child)
		}
		unix.Close(child)
		if err != nil {
			return err
		}
		unix.Unlinkat(dir, e.Name(), unix.AT_REMOVEDIR)
	}
	return nil
}

func sameDevice(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev
}

// mountAll mounts what the root needs besides the data disk, and sets the
// kernel up for containers.
func mountAll() error {
	err := mountEach([]mount{
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"home", "/root", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0700"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate,memory_recursiveprot"},
		{"bpf", "/sys/fs/bpf", "bpf", quiet, "mode=0700"},
	})
	if err != nil {
		return err
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := makeNodes("/dev"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/log", "/run/lock"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// Containers' mounts must not come back to the guest, nor the guest's late
	// ones be missed by them: as on a distribution's host, / is shared.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	return errors.Join(delegateCgroups(), setSysctls())
}

// nodes are devices that containers ask for: those of modules which the kernel loads
// when somebody opens them, so that until then it makes no node, and those which a
// distribution opens to everybody.
var nodes = []struct {
	name         string
	major, minor uint32
	mode         uint32
}{
	{"fuse", 10, 229, 0o666},
	{"loop-control", 10, 237, 0o660},
	{"mapper/control", 10, 236, 0o600},
	{"net/tun", 10, 200, 0o666},
}

// makeNodes makes nodes in a directory, as far as they are not there, and sets
// their modes.
func makeNodes(dir string) error {
	for _, n := range nodes {
		name := filepath.Join(dir, n.name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		err := unix.Mknod(name, unix.S_IFCHR|n.mode, int(unix.Mkdev(n.major, n.minor)))
		if err == nil || err == unix.EEXIST {
			err = unix.Chmod(name, n.mode)
		}
		if err != nil {
			return fmt.Errorf("make the device %s: %w", name, err)
		}
	}
	return nil
}

// delegateCgroups makes every controller available to the groups below the
// root's.
func delegateCgroups() error {
	const root = "/sys/fs/cgroup"
	list, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	names := strings.Fields(string(list))
	if len(names) == 0 {
		return errors.New("the kernel offers no cgroup controllers")
	}
	all := "+" + strings.Join(names, " +")
	return os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(all), 0)
}

// sysctls: what container workloads commonly need raised, and the silence of a
// network that has no IPv6 router.
var sysctls = map[string]string{
	"fs/inotify/max_user_instances":     "8192",
	"fs/inotify/max_user_watches":       "1048576",
	"fs/file-max":                       "9223372036854775807",
	"kernel/keys/maxkeys":               "20000",
	"kernel/keys/root_maxkeys":          "1000000",
	"kernel/pid_max":                    "4194304",
	"vm/max_map_count":                  "1048576",
	"vm/overcommit_memory":              "1",
	"net/core/somaxconn":                "4096",
	"net/ipv4/ip_forward":               "1",
	"net/ipv4/conf/all/route_localnet":  "0",
	"net/ipv4/ping_group_range":         "0 2147483647",
	"net/ipv6/conf/default/accept_ra":   "0",
	"net/ipv6/conf/all/forwarding":      "1",
	"net/ipv4/neigh/default/gc_thresh3": "8192",
}

func setSysctls() error {
	var errs []error
	for name, value := range sysctls {
		errs = append(errs, sysctl(name, value))
	}
	return errors.Join(errs...)
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// findDisk returns the device of the disk with the serial, which the kernel may
// still be about to find.
func (h hypervisor) findDisk(serial string, patience time.Duration) (string, error) {
	deadline := time.Now().Add(patience)
	for {
		disks, err := os.ReadDir("/sys/block")
		if err != nil {
			return "", err
		}
		for _, disk := range disks {
			if h.hasSerial("/sys/block", disk.Name(), serial) {
				return "/dev/" + disk.Name(), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no disk has the serial %s", serial)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
