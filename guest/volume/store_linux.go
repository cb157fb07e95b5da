package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/ident"
)

// AnonymousLabel marks volumes that nobody named.
const AnonymousLabel = "com.docker.volume.anonymous"

// Volume describes a volume. It is a value.
type Volume struct {
	Name    string            `json:"name"`
	Driver  string            `json:"driver"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Path    string            `json:"-"` // of the content
}

// Anonymous says whether nobody named the volume.
func (v Volume) Anonymous() bool { _, ok := v.Labels[AnonymousLabel]; return ok }

// Store is a directory of volumes. It is safe for concurrent use.
type Store struct {
	dir  string
	bind func(ctx context.Context, path string) (*os.File, error) // nil: no volume is a bind

	// attach is mount(2).
	attach func(source, target, kind string, flags uintptr, data string) error

	mu      sync.Mutex // guards what follows, and the directory; it is held for moments only
	holders map[string]map[string]bool
	busy    map[string]chan struct{} // volumes that are being mounted or unmounted; closed after that
}

// Open opens the store in dir, which is made when it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o701); err != nil {
		return nil, fmt.Errorf("open the volumes: %w", err)
	}
	return &Store{dir: dir, attach: unix.Mount, holders: map[string]map[string]bool{}, busy: map[string]chan struct{}{}}, nil
}

// BindFrom says how to open the device of a volume that is a bind mount (type
// none, o bind), which is a path of the host. It is called before any other
// method; without it such volumes cannot be mounted.
func (s *Store) BindFrom(open func(ctx context.Context, path string) (*os.File, error)) {
	s.bind = open
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Create makes a volume; an empty name is a new anonymous one. One that exists
// with the same driver is returned as it is.
func (s *Store) Create(ctx context.Context, name, driver string, options, labels map[string]string) (Volume, error) {
	v, _, err := s.create(ctx, name, driver, options, labels)
	return v, err
}

// create is Create. It reports whether the volume is a new one.
func (s *Store) create(_ context.Context, name, driver string, options, labels map[string]string) (_ Volume, created bool, err error) {
	if driver != "" && driver != "local" {
		return Volume{}, false, errdefs.ErrNotFound.WithMessage(fmt.Sprintf(
			"error looking up volume plugin %s: plugin %q not found", driver, driver))
	}
	v := Volume{Name: name, Driver: "local", Created: time.Now().UTC(), Labels: maps.Clone(labels), Options: maps.Clone(options)}
	if name == "" {
		var b [32]byte
		rand.Read(b[:]) // never fails
		v.Name = hex.EncodeToString(b[:])
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[AnonymousLabel] = ""
	}
	if len(v.Name) == 1 {
		return Volume{}, false, invalid("create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	if !ident.Name(v.Name, 2, 255) {
		return Volume{}, false, invalid("create %s: %q includes invalid characters for a local volume name, only "+
			"\"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	}
	if err := checkOptions(options); err != nil {
		return Volume{}, false, invalid("create %s: %v", v.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, err := s.read(v.Name); err == nil {
		return old, false, nil
	}
	// The description goes last, and in one piece: a directory without it is no
	// volume.
	if err := os.MkdirAll(s.path(v.Name), 0o755); err != nil {
		return Volume{}, false, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return Volume{}, false, err
	}
	file := filepath.Join(s.dir, v.Name, "volume.json")
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return Volume{}, false, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return Volume{}, false, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	v.Path = s.path(v.Name)
	return v, true, nil
}

// checkOptions reads the options of docker's local driver: what is mounted, or
// nothing. There are no quotas.
func checkOptions(options map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(options)) {
		switch k {
		case "type", "o", "device", "size":
		default:
			return invalid("invalid option: %q", k)
		}
	}
	if v, ok := options["size"]; ok {
		size, err := units.RAMInBytes(v)
		if err != nil {
			return invalid("%v", err)
		}
		if size > 0 {
			return invalid("quota size requested but no quota support")
		}
	}
	for _, need := range [][2]string{{"device", "type"}, {"type", "device"}, {"o", "device"}, {"o", "type"}} {
		_, has := options[need[0]]
		if _, ok := options[need[1]]; has && !ok {
			return invalid("missing required option: %q", need[1])
		}
	}
	return nil
}

// Ensure is Create for those who want the name and the path only. It reports
// whether the volume is a new one.
func (s *Store) Ensure(ctx context.Context, name, driver string, options, labels map[string]string) (string, string, bool, error) {
	v, created, err := s.create(ctx, name, driver, options, labels)
	return v.Name, v.Path, created, err
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name, "_data") }

func (s *Store) read(name string) (Volume, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, name, "volume.json"))
	if err != nil {
		return Volume{}, err
	}
	var v Volume
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, err
	}
	if v.Name != name {
		return Volume{}, fmt.Errorf("volume %s describes itself as %q", name, v.Name)
	}
	v.Path = s.path(name)
	return v, nil
}

// Get returns one volume.
func (s *Store) Get(name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(name)
}

func (s *Store) get(name string) (Volume, error) {
	if !ident.Name(name, 2, 255) {
		return Volume{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", name))
	}
	v, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return v, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", name))
	}
	return v, err
}

// List returns all volumes, sorted by name.
func (s *Store) List() ([]Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list the volumes: %w", err)
	}
	var list []Volume
	for _, e := range entries {
		if v, err := s.read(e.Name()); err == nil {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// mountTime bounds how long a mount may take. Only servers that do not answer take
// long.
const mountTime = 30 * time.Second

// acquire takes the right to mount and unmount a volume; release gives it back.
func (s *Store) acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		s.mu.Lock()
		busy := s.busy[name]
		if busy == nil {
			done := make(chan struct{})
			s.busy[name] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.busy, name)
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("volume %s is being mounted or unmounted already: %w", name, context.Cause(ctx))
		}
	}
}

// Mount makes the volume's content appear at its path. holder is who wants it;
// the same holder twice counts once. It waits a bounded time for a server.
func (s *Store) Mount(ctx context.Context, name, holder string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, mountTime, errNoAnswer)
	defer cancel()
	release, err := s.acquire(ctx, name)
	if err != nil {
		return "", err
	}
	v, err := s.Get(name)
	if err != nil {
		release()
		return "", err
	}
	if v.Options["device"] == "" || mounted(v.Path) {
		defer release()
		s.Hold(name, holder)
		return v.Path, nil
	}
	done := make(chan error, 1)
	abandoned := false // guarded by mu
	go func() {        // it ends with the kernel's patience, which is longer than ours
		defer release()
		err := s.mount(ctx, v)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case err == nil && abandoned:
			err = unix.Unmount(v.Path, unix.MNT_DETACH)
		case err == nil:
			s.hold(name, holder)
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		select {
		case err = <-done:
		default:
			abandoned, err = true, mountError(v, context.Cause(ctx))
		}
	}
	if err != nil {
		return "", err
	}
	return v.Path, nil
}

var errNoAnswer = fmt.Errorf("the server did not answer within %v", mountTime)

// Hold makes holder one that has mounted the volume already, for a store that has
// been opened anew.
func (s *Store) Hold(name, holder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(name, holder)
}

// hold is Hold. The caller holds mu.
func (s *Store) hold(name, holder string) {
	if s.holders[name] == nil {
		s.holders[name] = map[string]bool{}
	}
	s.holders[name][holder] = true
}

// Unmount ends a holder's use.
func (s *Store) Unmount(ctx context.Context, name, holder string) error {
	if !s.drop(name, holder) {
		return nil
	}
	release, err := s.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	if len(s.held(name)) > 0 { // again
		return nil
	}
	v, err := s.Get(name)
	if err != nil || v.Options["device"] == "" {
		return nil
	}
	if err := unix.Unmount(v.Path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount volume %s: %w", name, err)
	}
	return nil
}

// drop reports whether holder was the last one.
func (s *Store) drop(name, holder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holders[name][holder] {
		return false
	}
	delete(s.holders[name], holder)
	if len(s.holders[name]) > 0 {
		return false
	}
	delete(s.holders, name)
	return true
}

// mounted says whether a path is a mount point. It asks nothing of what is mounted
// there, which may not answer.
func mounted(path string) bool {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, filepath.Base(path), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.EXDEV
}

// mount mounts what the options describe, as mount(8) would.
func (s *Store) mount(ctx context.Context, v Volume) error {
	flags, data := mountOptions(v.Options["o"])
	device := v.Options["device"]
	err := error(nil)
	if flags&unix.MS_BIND != 0 {
		var source *os.File
		if source, err = s.openBind(ctx, device); err == nil {
			defer source.Close()
			device = fmt.Sprintf("/proc/self/fd/%d", source.Fd())
		}
	}
	if err == nil {
		if device, data, err = resolveNet(ctx, v.Options["type"], device, data); err == nil {
			err = s.attach(device, v.Path, v.Options["type"], flags, data)
		}
	}
	if err == nil && flags&unix.MS_BIND != 0 && flags&unix.MS_RDONLY != 0 {
		err = s.attach("", v.Path, "", flags|unix.MS_REMOUNT, "")
	}
	if err != nil {
		return mountError(v, err)
	}
	return nil
}

func mountError(v Volume, err error) error {
	flags, data := mountOptions(v.Options["o"])
	return fmt.Errorf("failed to mount local volume: mount %s:%s, flags: 0x%x, data: %s: %w", v.Options["device"], v.Path, flags,
		hidden(data), err)
}

// resolveNet puts addresses where a network file system's options, or the device
// of a Windows share, name hosts: the kernel knows no names.
func resolveNet(ctx context.Context, kind, device, data string) (string, string, error) {
	if kind != "nfs" && kind != "nfs4" && kind != "cifs" {
		return device, data, nil
	}
	options := strings.Split(data, ",")
	for i, o := range options {
		host, ok := strings.CutPrefix(o, "addr=")
		if !ok {
			continue
		}
		addr, err := resolve(ctx, host)
		options[i] = "addr=" + addr
		return device, strings.Join(options, ","), err
	}
	if host, share, ok := strings.Cut(strings.TrimPrefix(device, "//"), "/"); ok && kind == "cifs" && strings.HasPrefix(device, "//") {
		addr, err := resolve(ctx, host)
		return "//" + addr + "/" + share, data, err
	}
	return device, data, nil
}

func resolve(ctx context.Context, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	addrs, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
	if err != nil {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return addrs[0].String(), nil
}

// hidden is data without the password that may be in it.
func hidden(data string) string {
	parts := strings.Split(data, ",")
	for i, o := range parts {
		if strings.HasPrefix(o, "password=") {
			parts[i] = "password=********"
		}
	}
	return strings.Join(parts, ",")
}

func (s *Store) openBind(ctx context.Context, path string) (*os.File, error) {
	if s.bind == nil {
		return nil, errors.New("no folders of the host are shared with the machine")
	}
	return s.bind(ctx, path)
}

// mountOptions sorts the option "o" into the kernel's flags and the file system's
// own.
func mountOptions(list string) (flags uintptr, data string) {
	var rest []string
	for o := range strings.SplitSeq(list, ",") {
		switch o {
		case "", "rw":
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		case "ro":
			flags |= unix.MS_RDONLY
		case "nosuid":
			flags |= unix.MS_NOSUID
		case "nodev":
			flags |= unix.MS_NODEV
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "noatime":
			flags |= unix.MS_NOATIME
		default:
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

// Remove removes a volume that nobody holds. With force, one that does not exist
// is no error.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, mountTime, errNoAnswer)
	defer cancel()
	release, err := s.acquire(ctx, name)
	if err != nil {
		return errdefs.ErrConflict.WithMessage("remove " + name + ": " + err.Error())
	}
	defer release()
	v, err := s.Get(name)
	if err != nil {
		if force && errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	if holders := s.held(name); len(holders) > 0 {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("remove %s: volume is in use - [%s]", name, strings.Join(holders, ", ")))
	}
	if v.Options["device"] != "" && mounted(v.Path) {
		if err := unix.Unmount(v.Path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("remove volume %s: %w", name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Without its description it is no volume, whatever happens next.
	if err := os.Remove(filepath.Join(s.dir, name, "volume.json")); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// held lists a volume's holders, sorted.
func (s *Store) held(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.holders[name]))
}

// Size measures a volume's content, in bytes.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	v, err := s.Get(name)
	if err != nil {
		return 0, err
	}
	var total int64
	seen := map[uint64]bool{} // inodes with several names count once
	err = filepath.WalkDir(v.Path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away meanwhile
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		if ino, links := inode(info); links > 1 {
			if seen[ino] {
				return nil
			}
			seen[ino] = true
		}
		total += info.Size()
		return nil
	})
	return total, err
}
