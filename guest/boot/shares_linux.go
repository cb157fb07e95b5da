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
func mountShares(dir string, shares []wire.Share, mount func(tag, target string, flags uintptr) error) error {
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

func mountShare(dir string, s wire.Share, mount func(tag, target string, flags uintptr) error) (err error) {
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
	return mount(s.Tag, target, flags)
}

func mountVirtiofs(tag, target string, flags uintptr) error {
	if err := unix.Mount(tag, target, "virtiofs", flags, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}
