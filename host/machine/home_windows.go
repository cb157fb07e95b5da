package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

const dockerScheme = "npipe://"

func platformHome(getenv func(string) string) (Home, error) {
	local := getenv("LOCALAPPDATA")
	if local == "" {
		return Home{}, errors.New("LOCALAPPDATA is not set")
	}
	root := filepath.Join(local, "berth")
	return under(root, root), nil
}

// socketParent holds only what drivers put there: the addresses are pipes.
func socketParent(string) string {
	dir, err := os.UserCacheDir() // %LocalAppData%
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "berth", "run")
}

func (m Machine) address(what string) string { return `\\.\pipe\berth-` + m.id + "-" + what }

// MakeSocketDir creates the machine's directory for run-time files. The
// user's profile keeps others out.
func (m Machine) MakeSocketDir() error {
	if err := os.MkdirAll(m.VMDir(), 0o700); err != nil {
		return fmt.Errorf("cannot create the directory for sockets: %w", err)
	}
	return nil
}

// CheckSocketDir finds nothing: the user's profile keeps others out.
func (m Machine) CheckSocketDir() error { return nil }

// HoldSocketDir does nothing here: nobody cleans that directory.
func (m Machine) HoldSocketDir() (release func(), err error) { return func() {}, nil }

// FreeBytes is how much the user may still write to the disk that holds path.
func FreeBytes(path string) (int64, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(p, &free, nil, nil); err != nil {
		return 0, fmt.Errorf("cannot tell the free space at %s: %w", path, err)
	}
	return int64(free), nil
}

const rootsExample = `C:\path\to\more-roots.pem`

// defaultSharesText is what the configuration's template says of them, filled up.
// The folder for temporary files lies in the user's.
const defaultSharesText = "[~]             "

var procCompressedSize = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetCompressedFileSizeW")

// allocatedBytes is what a sparse file really occupies.
func allocatedBytes(path string, info os.FileInfo) int64 {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return info.Size()
	}
	const invalid = 0xffffffff
	var high uint32
	low, _, err := procCompressedSize.Call(uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&high)))
	if uint32(low) == invalid && err != windows.ERROR_SUCCESS {
		return info.Size() // the upper bound
	}
	return int64(high)<<32 | int64(uint32(low))
}

// makeSparse marks f so that NTFS does not allocate its holes.
func makeSparse(f *os.File) error {
	const fsctlSetSparse = 0x900c4
	var n uint32
	err := windows.DeviceIoControl(windows.Handle(f.Fd()), fsctlSetSparse, nil, 0, nil, 0, &n, nil)
	if err != nil {
		return fmt.Errorf("cannot make %s sparse: %w", f.Name(), err)
	}
	return nil
}
