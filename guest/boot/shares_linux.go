package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

// sharesDir holds a mount point for each of the host's folders, named by its tag.
// "TAG.error" says why one could not be mounted. The engine goes by that.
const sharesDir = runDir + "/share"

// mountShares mounts the host's folders, all at once. The module is loaded. One
// that fails leaves the others alone.
func mountShares(dir string, shares []wire.Share, mount func(s wire.Share, target string, flags uintptr) error) error {
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	seen := map[string]bool{}
	for _, s := range shares {
		if seen[s.Tag] { // another name of the same folder
			continue
		}
		seen[s.Tag] = true
		all.Go(func() {
			if err := mountShare(dir, s, mount); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("folder %s: %w", s.Path, err))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func mountShare(dir string, s wire.Share, mount func(s wire.Share, target string, flags uintptr) error) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, s.Tag+".error"), []byte(err.Error()), 0o600))
		}
	}()
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if s.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	target := filepath.Join(dir, s.Tag)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	return mount(s, target, flags)
}

// mountFolder mounts one folder by the protocol that it comes with, unless it is
// mounted.
func (m *machine) mountFolder(s wire.Share, target string, flags uintptr) error {
	var here, parent unix.Stat_t
	if unix.Stat(target, &here) == nil && unix.Stat(filepath.Dir(target), &parent) == nil && here.Dev != parent.Dev {
		return nil
	}
	if s.Protocol == wire.Share9P {
		return m.mount9P(s, target, flags)
	}
	if err := unix.Mount(s.Tag, target, "virtiofs", flags, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// mount9P mounts a folder that the host serves over a stream. Each user
// of the guest attaches by itself, and so is known to the server. Nothing is cached
// but what a program has mapped: the host's programs change files, too.
func (m *machine) mount9P(s wire.Share, target string, flags uintptr) error {
	f, err := m.link.file(wire.PortFolderHost)
	if err != nil {
		return err
	}
	defer f.Close() // the mount has its own reference
	_, err = f.Write(m.host.welcome.Secret)
	if err == nil {
		err = wire.WriteFrame(f, wire.FolderRequest{Tag: s.Tag})
	}
	if err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var mountErr error
	err = raw.Control(func(fd uintptr) {
		options := fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%d,version=9p2000.L,msize=%d,access=user,cache=mmap", fd, fd, wire.Max9P)
		mountErr = unix.Mount(s.Tag, target, "9p", flags, options)
	})
	if err := errors.Join(err, mountErr); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}
