//go:build linux || darwin

package images

import (
	"os"
	"syscall"
)

func identify(info os.FileInfo) (identity, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{
		Device: uint64(st.Dev), Inode: st.Ino, Size: info.Size(), Changed: changed(st), ModTime: info.ModTime().UnixNano(),
	}, true
}
