package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// NS is an open network namespace. It lives as long as it is open, is pinned
// somewhere, or a process is in it.
type NS struct{ f *os.File }

// NewNS makes a network namespace with its loopback up and docker's defaults for
// containers: any user may bind low ports and ping. Interfaces made in it later
// have no IPv6 unless they are told to.
func NewNS() (*NS, error) {
	var ns *NS
	err := elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot make a network namespace: %w", err)
		}
		f, err := os.Open(threadNS)
		if err != nil {
			return err
		}
		if err := setUp(); err != nil {
			f.Close()
			return fmt.Errorf("cannot set up a network namespace: %w", err)
		}
		ns = &NS{f}
		return nil
	})
	return ns, err
}

const threadNS = "/proc/thread-self/ns/net"

func setUp() error {
	for _, s := range []struct{ name, value string }{
		{"ipv4/ip_unprivileged_port_start", "0"},
		{"ipv4/ping_group_range", "0 2147483647"},
		{"ipv6/conf/default/disable_ipv6", "1"},
	} {
		if err := Sysctl(s.name, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	c, err := Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SetUp(loopbackIndex)
}

// loopbackIndex is lo's in every namespace.
const loopbackIndex = 1

// OpenNS opens a namespace by its path. What is left at the path of a namespace that was
// half unpinned is none: the error is os.ErrNotExist, as where there is nothing.
func OpenNS(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
	}
	return &NS{f}, nil
}

// FD is valid until Close.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Close lets go of the namespace.
func (n *NS) Close() error { return n.f.Close() }

// Same reports whether n and o are one namespace.
func (n *NS) Same(o *NS) bool {
	a, err1 := n.f.Stat()
	b, err2 := o.f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// Pin binds the namespace to path, which is created, and which then keeps it
// alive and leads to it.
func (n *NS) Pin(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.FD()), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return &os.PathError{Op: "mount", Path: path, Err: err}
	}
	return nil
}

// Unpin undoes Pin. It is no error if there is nothing at path.
func Unpin(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return &os.PathError{Op: "umount", Path: path, Err: err}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Pinned reports whether a namespace is mounted at path.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do calls f on a thread that is in the namespace. f must not start goroutines
// that count on it; sockets that it opens stay in the namespace.
func (n *NS) Do(f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter the container's network namespace: %w", err)
		}
		return f()
	})
}

// elsewhere calls f on a thread of its own, which may change its network
// namespace, and takes the thread back afterwards. A thread that cannot return
// is given up.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(threadNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Sysctl writes a value below /proc/sys/net, in the calling thread's namespace.
func Sysctl(name, value string) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys/net", name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// IsNotExist reports whether err says that an interface, an address or a path
// was not there.
func IsNotExist(err error) bool {
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EADDRNOTAVAIL) ||
		errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrNotExist)
}
