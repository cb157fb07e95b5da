package ninep

import (
	"os"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

const noAttr = unix.ENODATA

func sameName(a, b string) bool { return a == b }

func linuxErrno(e syscall.Errno) error {
	if e == syscall.EMFILE {
		e = syscall.ENFILE
	}
	return linux.Errno(e)
}

// fill adds what os.FileInfo does not say.
func (f *file) fill(st os.FileInfo, a *p9.Attr) {
	sys := st.Sys().(*syscall.Stat_t)
	a.NLink, a.Blocks = p9.NLink(sys.Nlink), uint64(sys.Blocks)
	a.ATimeSeconds, a.ATimeNanoSeconds = uint64(sys.Atim.Sec), uint64(sys.Atim.Nsec)
	a.MTimeSeconds, a.MTimeNanoSeconds = uint64(sys.Mtim.Sec), uint64(sys.Mtim.Nsec)
	a.CTimeSeconds, a.CTimeNanoSeconds = uint64(sys.Ctim.Sec), uint64(sys.Ctim.Nsec)
}
