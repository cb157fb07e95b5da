package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Rootfs is a container's root filesystem. It is a value; the methods need
// CAP_SYS_ADMIN.
type Rootfs struct {
	Key      string
	Image    digest.Digest // the target it was made from
	Manifest digest.Digest // of the platform
	Chain    digest.Digest // of the image's layers; empty when there are none
	Lower    []string      // the image's layers, top first; never empty
	Upper    string        // the writable layer
	Work     string        // overlayfs's own
	Volatile bool          // unmounting flushes nothing; lost when the machine crashes
}

// Mount mounts the root filesystem on target, a directory. The caller unmounts it.
func (r Rootfs) Mount(target string) error {
	if r.Volatile {
		// The kernel refuses a volatile layer that was not unmounted in order.
		// Its content may be torn then, which is what volatile means.
		if err := os.RemoveAll(filepath.Join(r.Work, "work", "incompat")); err != nil {
			return fmt.Errorf("cannot mount %s: %w", r.Key, err)
		}
	}
	fd, err := r.open()
	if err != nil {
		return fmt.Errorf("cannot mount %s: %w", r.Key, err)
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", r.Key, target, err)
	}
	return nil
}

// open makes the overlay and returns its detached mount. The mount API has no
// limit on the number or the names of layers, unlike mount(2)'s one page.
func (r Rootfs) open() (int, error) {
	return overlay(append(lowerOptions(r.Lower),
		option{"upperdir", r.Upper},
		option{"workdir", r.Work},
		// The layer must hold whole files and no references, for it is packed
		// and measured without the kernel's help; and an image must not bring
		// references of its own.
		option{"redirect_dir", "nofollow"},
		option{"metacopy", "off"},
		option{"index", "off"},
		option{key: volatileKey(r.Volatile)}), 0)
}

func volatileKey(on bool) string {
	if on {
		return "volatile"
	}
	return ""
}

type option struct{ key, value string }

func lowerOptions(dirs []string) []option {
	options := make([]option, len(dirs), len(dirs)+6)
	for i, dir := range dirs {
		options[i] = option{"lowerdir+", dir}
	}
	return options
}

// overlay returns a detached overlay mount. An option with an empty key is left
// out, one with an empty value is a flag.
func overlay(options []option, attr int) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		switch {
		case o.key == "":
			continue
		case o.value == "":
			err = unix.FsconfigSetFlag(fs, o.key)
		default:
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, fmt.Errorf("overlay option %s=%s: %w", o.key, o.value, errors.Join(err, messages(fs)))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("overlay: %w", errors.Join(err, messages(fs)))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, os.NewSyscallError("fsmount", err)
	}
	return fd, nil
}

// messages reads what the kernel has to say about a refused option.
func messages(fs int) error {
	buf := make([]byte, 1024)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return nil
	}
	return errors.New(string(buf[:n]))
}

// Make makes a writable layer in dir, which must exist and be empty. Nothing is in
// it but Marker; its root has the owner and the mode of the image's.
func Make(dir string, lower []string) (upper, work string, err error) {
	upper, work = filepath.Join(dir, "fs"), filepath.Join(dir, "work")
	var st unix.Stat_t
	if err := unix.Stat(lower[0], &st); err != nil {
		return "", "", fmt.Errorf("image layer %s: %w", lower[0], err)
	}
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", "", err
		}
	}
	if st.Uid != 0 || st.Gid != 0 {
		if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
			return "", "", err
		}
	}
	marker, err := os.OpenFile(filepath.Join(upper, Marker), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", "", err
	}
	marker.Close()
	return upper, work, unix.Chmod(upper, st.Mode&0o7777)
}
