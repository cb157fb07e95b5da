package volume

import (
	"io/fs"
	"syscall"
)

// inode returns a file's number and how many names it has.
func inode(info fs.FileInfo) (ino, links uint64) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino, uint64(st.Nlink)
	}
	return 0, 1
}
