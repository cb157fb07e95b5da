package ninep

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/host/share/owner"
)

const nonBlock = 0

// sameName: the host's filesystems take no notice of case.
func sameName(a, b string) bool { return strings.EqualFold(a, b) }

// validName refuses what a name cannot have here. A colon would name a stream of
// the file, and a backslash another folder.
func validName(name string) bool {
	return !strings.ContainsAny(name, `\:*?"<>|`) && !strings.HasSuffix(name, " ") && !strings.HasSuffix(name, ".")
}

// noModes: os says so of files that it can only make read-only.
func noModes(err error) bool { return err != nil }

// hostMode is what the guest's mode would be on a host with modes, or all of it.
func hostMode(_ os.FileInfo, kind uint32, o owner.Override) uint32 {
	if o.Mode != 0 {
		return kind | owner.HostMode(o.Mode, kind)
	}
	return kind | 0o777
}

// number is the file's number on its volume.
func (f *file) number(st os.FileInfo) (id uint64, err error) {
	if !owner.Kept(kindOf(st)) {
		return uint64(st.ModTime().UnixNano()) ^ uint64(st.Size()), nil // a link, which has no other names
	}
	h, err := f.openFile(os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	info, err := information(h)
	return uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow), err
}

func information(h *os.File) (info windows.ByHandleFileInformation, err error) {
	err = windows.GetFileInformationByHandle(windows.Handle(h.Fd()), &info)
	return info, err
}

// stream is the alternate data stream that holds an Override.
const stream = ":berth.stat"

// openStream opens the stream of an open file, without using its name again.
func openStream(h *os.File, write bool) (*os.File, error) {
	name, err := windows.NewNTUnicodeString(stream)
	if err != nil {
		return nil, err
	}
	attributes := windows.OBJECT_ATTRIBUTES{RootDirectory: windows.Handle(h.Fd()), ObjectName: name}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	access, disposition := uint32(windows.FILE_GENERIC_READ), uint32(windows.FILE_OPEN)
	if write {
		access, disposition = windows.FILE_GENERIC_WRITE, windows.FILE_OVERWRITE_IF
	}
	const share = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	var handle windows.Handle
	var status windows.IO_STATUS_BLOCK
	err = windows.NtCreateFile(&handle, access|windows.SYNCHRONIZE, &attributes, &status, nil, windows.FILE_ATTRIBUTE_NORMAL,
		share, disposition, windows.FILE_NON_DIRECTORY_FILE|windows.FILE_SYNCHRONOUS_IO_NONALERT, 0, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(handle), stream), nil
}

// loadOverride reads what the guest has done to an open file.
func loadOverride(h *os.File) owner.Override {
	s, err := openStream(h, false)
	if err != nil {
		return owner.None
	}
	defer s.Close()
	text, err := io.ReadAll(io.LimitReader(s, 128))
	if err != nil {
		return owner.None
	}
	o, _ := owner.Parse(string(text))
	return o
}

// storeOverride writes it; an empty stream says nothing, too. A filesystem without
// streams, as FAT, cannot keep it.
func storeOverride(h *os.File, o owner.Override) error {
	s, err := openStream(h, true)
	if err != nil {
		return linux.ENOTSUP
	}
	text := ""
	if o != owner.None {
		text = o.String()
	}
	_, err = s.WriteString(text)
	return errors.Join(err, s.Close())
}

// renameAt goes by the paths from the share's root: no call takes two folders.
func renameAt(s *Share, from *folder, old string, to *folder, name string) error {
	a, b, err := s.paths(from, old, to, name)
	if err != nil {
		return err
	}
	return s.root.Rename(a, b)
}

func linkAt(s *Share, from *folder, old string, to *folder, name string) error {
	a, b, err := s.paths(from, old, to, name)
	if err != nil {
		return err
	}
	return s.root.Link(a, b)
}

// paths are two names in folders as paths from the share's root, which have to lead
// to those folders.
func (s *Share) paths(from *folder, old string, to *folder, name string) (a, b string, err error) {
	if a, err = s.path(from, old); err == nil {
		b, err = s.path(to, name)
	}
	return a, b, err
}

func (s *Share) path(dir *folder, name string) (string, error) {
	here, err := finalPath(dir.root)
	if err != nil {
		return "", err
	}
	top, err := finalPath(s.root)
	if err != nil {
		return "", err
	}
	if here == top {
		return name, nil
	}
	rest, ok := strings.CutPrefix(here, strings.TrimSuffix(top, `\`)+`\`)
	if !ok {
		return "", errStale
	}
	st, err := s.root.Stat(rest)
	if err != nil || !os.SameFile(st, dir.self) {
		return "", errors.Join(err, errStale)
	}
	return rest + `\` + name, nil
}

// finalPath is the path of an open folder.
func finalPath(root *os.Root) (string, error) {
	h, err := root.Open(".")
	if err != nil {
		return "", err
	}
	defer h.Close()
	buf := make([]uint16, windows.MAX_LONG_PATH)
	n, err := windows.GetFinalPathNameByHandle(windows.Handle(h.Fd()), &buf[0], uint32(len(buf)), 0)
	if err != nil {
		return "", err
	}
	return windows.UTF16ToString(buf[:n]), nil
}

// StatFS implements p9.File.
func (f *file) StatFS() (p9.FSStat, error) {
	path, err := finalPath(f.share.root)
	if err != nil {
		return p9.FSStat{}, errno(err)
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return p9.FSStat{}, errno(err)
	}
	var available, total, free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &available, &total, &free); err != nil {
		return p9.FSStat{}, errno(err)
	}
	const v9fs, block = 0x01021997, 4096
	return p9.FSStat{
		Type: v9fs, BlockSize: block, Blocks: total / block, BlocksFree: free / block, BlocksAvailable: available / block,
		Files: 1 << 32, FilesFree: 1 << 31, NameLength: maxName,
	}, nil
}

// fill adds what os.FileInfo does not say.
func (f *file) fill(st os.FileInfo, a *p9.Attr) {
	a.NLink, a.Blocks = 1, (uint64(st.Size())+511)/512
	set := func(t time.Time, sec, nsec *uint64) { *sec, *nsec = uint64(t.Unix()), uint64(t.Nanosecond()) }
	set(st.ModTime(), &a.MTimeSeconds, &a.MTimeNanoSeconds)
	set(st.ModTime(), &a.CTimeSeconds, &a.CTimeNanoSeconds)
	if sys, ok := st.Sys().(*syscall.Win32FileAttributeData); ok {
		set(time.Unix(0, sys.LastAccessTime.Nanoseconds()), &a.ATimeSeconds, &a.ATimeNanoSeconds)
	}
}

// errno is Linux's number for an error of the host's.
func errno(err error) error {
	var already linux.Errno
	if err == nil || errors.As(err, &already) {
		return err
	}
	for _, pair := range []struct {
		error
		linux.Errno
	}{
		{windows.ERROR_DIR_NOT_EMPTY, linux.ENOTEMPTY}, {windows.ERROR_DISK_FULL, linux.ENOSPC}, {windows.ERROR_HANDLE_DISK_FULL, linux.ENOSPC},
		{windows.ERROR_SHARING_VIOLATION, linux.EBUSY}, {windows.ERROR_LOCK_VIOLATION, linux.EBUSY}, {windows.ERROR_NOT_SAME_DEVICE, linux.EXDEV},
		{windows.ERROR_INVALID_NAME, linux.EINVAL}, {windows.ERROR_DIRECTORY, linux.ENOTDIR}, {windows.ERROR_WRITE_PROTECT, linux.EROFS},
		{windows.ERROR_TOO_MANY_OPEN_FILES, linux.ENFILE}, {windows.ERROR_PRIVILEGE_NOT_HELD, linux.EPERM}, {windows.ERROR_NOT_SUPPORTED, linux.ENOTSUP},
	} {
		if errors.Is(err, pair.error) {
			return pair.Errno
		}
	}
	return linux.ExtractErrno(err)
}
