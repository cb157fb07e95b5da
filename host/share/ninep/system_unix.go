//go:build unix

package ninep

import (
	"errors"
	"os"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/share/owner"
)

// nonBlock keeps the opening of what has become a FIFO from waiting.
const nonBlock = unix.O_NONBLOCK

func validName(string) bool { return true }

// noModes tells whether err says that the host has no modes.
func noModes(error) bool { return false }

// hostMode is the file's mode on the host, with its kind.
func hostMode(st os.FileInfo, kind uint32, _ owner.Override) uint32 {
	return kind | uint32(st.Mode().Perm())
}

// number is the file's inode number, told from those of other devices'.
func (f *file) number(st os.FileInfo) (uint64, error) {
	sys := st.Sys().(*syscall.Stat_t)
	root := f.share.self.Sys().(*syscall.Stat_t)
	if sys.Dev == root.Dev {
		return sys.Ino, nil
	}
	return sys.Ino ^ uint64(sys.Dev)<<40, nil
}

// loadOverride reads what the guest has done to an open file.
func loadOverride(h *os.File) owner.Override {
	var buf [64]byte
	n, err := unix.Fgetxattr(int(h.Fd()), owner.Xattr, buf[:])
	if err != nil {
		return owner.None
	}
	o, _ := owner.Parse(string(buf[:n]))
	return o
}

func storeOverride(h *os.File, o owner.Override) error {
	if o == owner.None {
		if err := unix.Fremovexattr(int(h.Fd()), owner.Xattr); err != nil && !errors.Is(err, noAttr) {
			return err
		}
		return nil
	}
	return unix.Fsetxattr(int(h.Fd()), owner.Xattr, []byte(o.String()), 0)
}

// betweenFolders opens two folders for a call that takes names in them.
func betweenFolders(a, b *folder, do func(a, b int) error) error {
	from, err := a.root.Open(".")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := b.root.Open(".")
	if err != nil {
		return err
	}
	defer to.Close()
	return do(int(from.Fd()), int(to.Fd()))
}

func renameAt(_ *Share, from *folder, old string, to *folder, name string) error {
	return betweenFolders(from, to, func(a, b int) error { return unix.Renameat(a, old, b, name) })
}

func linkAt(_ *Share, from *folder, old string, to *folder, name string) error {
	return betweenFolders(from, to, func(a, b int) error { return unix.Linkat(a, old, b, name, 0) })
}

// StatFS implements p9.File.
func (f *file) StatFS() (p9.FSStat, error) {
	var st unix.Statfs_t
	err := f.share.withRoot(func(h *os.File) error { return unix.Fstatfs(int(h.Fd()), &st) })
	if err != nil {
		return p9.FSStat{}, errno(err)
	}
	const v9fs = 0x01021997
	return p9.FSStat{
		Type: v9fs, BlockSize: uint32(st.Bsize), Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvailable: uint64(st.Bavail),
		Files: st.Files, FilesFree: st.Ffree, NameLength: maxName,
	}, nil
}

// errno is Linux's number for an error of the host's.
func errno(err error) error {
	var already linux.Errno
	if err == nil || errors.As(err, &already) {
		return err
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return linuxErrno(e)
	}
	return linux.ExtractErrno(err)
}

// withRoot opens the share's folder for the call of do.
func (s *Share) withRoot(do func(*os.File) error) error {
	h, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer h.Close()
	return do(h)
}
