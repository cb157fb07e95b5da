package ninep

import (
	"os"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

const noAttr = unix.ENOATTR

// sameName: the host's filesystems take no notice of case, most of them.
func sameName(a, b string) bool { return strings.EqualFold(a, b) }

// linuxErrno is Linux's number: the first 34 are the same but for one.
func linuxErrno(e syscall.Errno) error {
	if n, ok := linuxNumbers[e]; ok {
		return n
	}
	if e <= 34 {
		return linux.Errno(e)
	}
	return linux.EIO
}

var linuxNumbers = map[syscall.Errno]linux.Errno{
	unix.EDEADLK: linux.EDEADLK, unix.EAGAIN: linux.EAGAIN, unix.EMFILE: linux.ENFILE, unix.ENOTSUP: linux.ENOTSUP,
	unix.EOPNOTSUPP: linux.ENOTSUP, unix.ELOOP: linux.ELOOP, unix.ENAMETOOLONG: linux.ENAMETOOLONG, unix.ENOTEMPTY: linux.ENOTEMPTY,
	unix.EDQUOT: linux.EDQUOT, unix.ESTALE: linux.ESTALE, unix.ENOATTR: linux.ENODATA, unix.ENOSYS: linux.ENOSYS,
	unix.EOVERFLOW: linux.EOVERFLOW, unix.EILSEQ: linux.EILSEQ, unix.ETIMEDOUT: linux.ETIMEDOUT, unix.ENOLCK: linux.ENOLCK,
}

// fill adds what os.FileInfo does not say.
func (f *file) fill(st os.FileInfo, a *p9.Attr) {
	sys := st.Sys().(*syscall.Stat_t)
	a.NLink, a.Blocks = p9.NLink(sys.Nlink), uint64(sys.Blocks)
	a.ATimeSeconds, a.ATimeNanoSeconds = uint64(sys.Atimespec.Sec), uint64(sys.Atimespec.Nsec)
	a.MTimeSeconds, a.MTimeNanoSeconds = uint64(sys.Mtimespec.Sec), uint64(sys.Mtimespec.Nsec)
	a.CTimeSeconds, a.CTimeNanoSeconds = uint64(sys.Ctimespec.Sec), uint64(sys.Ctimespec.Nsec)
}
