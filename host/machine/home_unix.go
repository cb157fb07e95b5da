//go:build !windows

package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const dockerScheme = "unix://"

// socketRoom is how long the parent of the sockets' directories may be. The
// longest socket is in a machine's VMDir, and macOS takes 103 bytes (Linux 107).
const socketRoom = 103 - len("/0123456789ab/vm/qmp.sock")

// socketParent is a directory below the user's own state, where nobody else can
// lay a socket in wait for a client that does not look at its owner. Where that
// path is too long it is one in /tmp, which MakeSocketDir then checks.
//
// It does not look at TMPDIR or XDG_RUNTIME_DIR: every shell of the user, also
// one without a login session, must find the same sockets, and the latter goes
// at logout while a machine may run on.
func socketParent(state string) string {
	if dir := filepath.Join(state, ".run"); len(dir) <= socketRoom { // no machine's name begins with a dot
		return dir
	}
	return filepath.Join("/tmp", "berth-"+strconv.Itoa(os.Getuid()))
}

func (m Machine) address(what string) string { return filepath.Join(m.SocketDir, what+".sock") }

// MakeSocketDir creates the machine's directory for sockets. The parent may lie
// in a directory that everybody may write to, so whoever made it first must have
// been this user: anything else is refused.
func (m Machine) MakeSocketDir() error {
	if err := os.MkdirAll(filepath.Dir(filepath.Dir(m.SocketDir)), 0o700); err != nil {
		return fmt.Errorf("cannot create the directory for sockets: %w", err)
	}
	for _, dir := range []string{filepath.Dir(m.SocketDir), m.SocketDir, m.VMDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return fmt.Errorf("cannot create the directory for sockets: %w", err)
		}
		if err := checkOwned(dir, os.Getuid()); err != nil {
			return err
		}
	}
	return nil
}

// CheckSocketDir reports what would keep MakeSocketDir from working. It changes
// nothing but the modes of directories that are the user's.
func (m Machine) CheckSocketDir() error {
	for _, dir := range []string{filepath.Dir(m.SocketDir), m.SocketDir} {
		if _, err := os.Lstat(dir); os.IsNotExist(err) {
			continue
		}
		if err := checkOwned(dir, os.Getuid()); err != nil {
			return err
		}
	}
	return nil
}

func checkOwned(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("cannot use %s for sockets: %w", dir, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("cannot use %s for sockets: it is not a directory: remove it", dir)
	case !ok || int(st.Uid) != uid:
		return fmt.Errorf("cannot use %s for sockets: it belongs to another user: ask them or an administrator to remove it", dir)
	case info.Mode().Perm() != 0o700:
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("cannot use %s for sockets: %w", dir, err)
		}
	}
	return nil
}

// HoldSocketDir keeps cleaners of /tmp (systemd-tmpfiles ages files) away from
// the sockets until the returned function is called: they skip locked directories.
func (m Machine) HoldSocketDir() (release func(), err error) {
	d, err := os.Open(m.SocketDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", m.SocketDir, err)
	}
	return func() { d.Close() }, nil
}

// FreeBytes is how much the user may still write to the disk that holds path.
func FreeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("cannot tell the free space at %s: %w", path, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

const rootsExample = "/path/to/more-roots.pem"

// defaultSharesText is what the configuration's template says of them, filled up.
const defaultSharesText = "[~, /tmp]       "

// allocatedBytes is what a sparse file really occupies.
func allocatedBytes(_ string, info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

func makeSparse(*os.File) error { return nil }
