package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/seccomp"
)

// The files in a container's directory.
const (
	stateFile   = "state.json"
	filterFile  = "seccomp"
	startSocket = "start.sock" // only while a detached container waits for its start
	pendingFile = "pending"    // of a detached container: one byte, emptied when its program is executed
)

// stateVersion is raised when older programs must not read the state.
const stateVersion = 1

// state is what is kept of a container on disk.
type state struct {
	Version   int         `json:"version"`
	ID        string      `json:"id"`
	PID       int         `json:"pid"`
	StartTime uint64      `json:"startTime"` // of the process, in the kernel's ticks: tells it from a later one with its number
	Created   time.Time   `json:"created"`
	Bundle    string      `json:"bundle,omitempty"`
	Rootfs    string      `json:"rootfs"`
	Cgroup    string      `json:"cgroup,omitempty"`
	Spec      *specs.Spec `json:"spec"` // without its seccomp filter
}

// save writes the state whole. StateDir is a tmpfs: there is nothing to sync.
func (s *state) save(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the container's state: %w", err)
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("save the container's state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("save the container's state: %w", err)
	}
	return nil
}

// loadState reads the state in dir. A directory without one is what a creator left
// that died early: it gives a state without a process, which can be deleted.
func loadState(dir, id string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Lstat(dir); serr != nil {
			return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
		}
		return &state{Version: stateVersion, ID: id}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return decodeState(b, id)
}

func decodeState(b []byte, id string) (*state, error) {
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("container %s: broken %s: %w", id, stateFile, err)
	}
	switch {
	case s.Version != stateVersion:
		return nil, fmt.Errorf("container %s: its state has version %d, this program knows %d", id, s.Version, stateVersion)
	case s.ID != id || s.PID < 0:
		return nil, fmt.Errorf("container %s: broken %s", id, stateFile)
	}
	return s, nil
}

func saveFilter(dir string, f *seccomp.Filter) error {
	if f == nil {
		return nil
	}
	b, err := f.MarshalBinary()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, filterFile), b, 0o600)
}

func loadFilter(dir string) (*seccomp.Filter, error) {
	b, err := os.ReadFile(filepath.Join(dir, filterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := new(seccomp.Filter)
	return f, f.UnmarshalBinary(b)
}

// startTime reads when a process began: field 22 of /proc/PID/stat. The name
// before it may hold anything, also parentheses.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(string(b))
}

func parseStartTime(stat string) (uint64, error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, errors.New("unexpected format of /proc/PID/stat")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// openProcess opens the process s names, or returns nil when it is gone.
func (s *state) openProcess() *os.File {
	if s.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		return nil
	}
	// The number is bound to the descriptor now: if the time still fits, it is ours.
	if t, err := startTime(s.PID); err != nil || t != s.StartTime {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// exited reports whether the process has ended (it may be a zombie still).
func exited(pidfd *os.File) bool {
	if pidfd == nil {
		return true
	}
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if err == unix.EINTR {
			continue
		}
		return err != nil || n > 0
	}
}

// List returns the IDs that have a directory in stateDir, sorted.
func List(stateDir string) ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, err
}

// childStatus reads si_code and si_status of a SIGCHLD's information, whose union
// the package unix leaves unnamed.
func childStatus(info *unix.Siginfo) (code, status int32) {
	// struct: signo, errno, code, padding; then pid, uid, status.
	status = *(*int32)(unsafe.Add(unsafe.Pointer(info), 16+8))
	return info.Code, status
}
