package compute

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/windows"
)

// held are files that nobody can replace until they are released.
type held struct {
	paths   []string // without links, in the order they were asked for
	handles []windows.Handle
}

func (h *held) release() {
	for _, f := range h.handles {
		windows.CloseHandle(f)
	}
	h.handles = nil
}

// fileToHold is one that is made if it is missing and shall be.
type fileToHold struct {
	File
	make bool
}

// hold opens files as a user, 0 for this process's, as the machine will. A machine
// must not get what its user may not open, nor, by a link that changes between the
// look and the use, something else.
func hold(user windows.Token, files []fileToHold) (_ *held, err error) {
	h := &held{}
	defer func() {
		if err != nil {
			h.release()
		}
	}()
	err = as(user, func() error {
		for _, f := range files {
			handle, err := open(f)
			if err != nil {
				return fmt.Errorf("open %s: %w", f.Path, err)
			}
			h.handles = append(h.handles, handle)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, handle := range h.handles {
		path, err := finalPath(handle)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", files[i].Path, err)
		}
		h.paths = append(h.paths, path)
	}
	return h, nil
}

// as runs f on a thread that acts as the user.
func as(user windows.Token, f func() error) error {
	if user == 0 {
		return f()
	}
	runtime.LockOSThread()
	if err := windows.SetThreadToken(nil, user); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("act as the user: %w", err)
	}
	err := f()
	if back := windows.RevertToSelf(); back != nil {
		return errors.Join(err, back) // the thread ends with the goroutine: it stays locked
	}
	runtime.UnlockOSThread()
	return err
}

// open opens a file so that it cannot be renamed or removed.
func open(f fileToHold) (windows.Handle, error) {
	path, err := windows.UTF16PtrFromString(f.Path)
	if err != nil {
		return 0, err
	}
	access, how := uint32(windows.GENERIC_READ), uint32(windows.OPEN_EXISTING)
	if f.Write {
		access |= windows.GENERIC_WRITE
	}
	if f.make {
		how = windows.OPEN_ALWAYS
	}
	return windows.CreateFile(path, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, how, windows.FILE_ATTRIBUTE_NORMAL, 0)
}

// finalPath is where an open file of a local disk is.
func finalPath(h windows.Handle) (string, error) {
	if kind, err := windows.GetFileType(h); err != nil || kind != windows.FILE_TYPE_DISK {
		return "", fmt.Errorf("it is no file (%w)", err)
	}
	buf := make([]uint16, maxPath)
	n, err := windows.GetFinalPathNameByHandle(h, &buf[0], uint32(len(buf)), 0)
	if err != nil {
		return "", err
	}
	if int(n) >= len(buf) {
		return "", windows.ERROR_FILENAME_EXCED_RANGE
	}
	path := strings.TrimPrefix(windows.UTF16ToString(buf[:n]), `\\?\`)
	if strings.HasPrefix(path, `UNC\`) {
		return "", errors.New("it is on another computer, where virtual machines cannot have files")
	}
	return path, nil
}
