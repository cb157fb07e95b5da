package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrUnavailable is returned where there is no cgroup v2 hierarchy.
var ErrUnavailable = errors.New("no cgroup v2 hierarchy at /sys/fs/cgroup")

// A Group is one control group.
type Group struct {
	path string // from the root
	dir  string // on the file system
}

// Root is the mount point of the cgroup v2 hierarchy.
func Root() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", ErrUnavailable
}

// Clean checks a group's path and brings it into its one form. The root itself is
// not a container's group.
func Clean(path string) (string, error) {
	clean := filepath.Clean("/" + path)
	if strings.Contains(path, "..") || strings.ContainsAny(path, "\x00\n") || clean == "/" || len(clean) > 1024 {
		return "", fmt.Errorf("invalid cgroup path %q", path)
	}
	for _, part := range strings.Split(clean[1:], "/") {
		if len(part) > 255 || strings.HasPrefix(part, "cgroup.") {
			return "", fmt.Errorf("invalid cgroup path %q", path)
		}
	}
	return clean, nil
}

// At is the group with that path, which need not exist.
func At(path string) (*Group, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	clean, err := Clean(path)
	if err != nil {
		return nil, err
	}
	return &Group{path: clean, dir: root + clean}, nil
}

// Create makes the group and those above it, with the controllers that r needs. A
// group that exists already is taken over when no process is in it.
func Create(path string, r *specs.LinuxResources) (*Group, error) {
	g, err := At(path)
	if err != nil {
		return nil, err
	}
	root := strings.TrimSuffix(g.dir, g.path)
	want := controllers(r)
	dir := root
	for _, part := range strings.Split(g.path[1:], "/") {
		if err := enable(dir, want); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", g.path, err)
		}
		dir += "/" + part
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("cgroup: %w", err)
		} else if err != nil && dir == g.dir {
			if pids, err := g.PIDs(); err != nil || len(pids) > 0 {
				return nil, fmt.Errorf("cgroup %s exists and has %d processes: choose another path", g.path, len(pids))
			}
		}
	}
	return g, nil
}

// Require switches on, for a group that exists, the controllers that r needs.
func (g *Group) Require(r *specs.LinuxResources) error {
	want := controllers(r)
	dir := strings.TrimSuffix(g.dir, g.path)
	for _, part := range strings.Split(g.path[1:], "/") {
		if err := enable(dir, want); err != nil {
			return fmt.Errorf("cgroup %s: %w", g.path, err)
		}
		dir += "/" + part
	}
	return nil
}

// controllers lists what a container needs: what it is counted by, and what it is
// limited by. Each one costs time whenever a group is made, so not all there are.
func controllers(r *specs.LinuxResources) []string {
	want := []string{"cpu", "io", "memory", "pids"}
	if r == nil {
		return want
	}
	if r.CPU != nil && r.CPU.Cpus+r.CPU.Mems != "" {
		want = append(want, "cpuset")
	}
	if len(r.HugepageLimits) > 0 {
		want = append(want, "hugetlb")
	}
	if len(r.Rdma) > 0 {
		want = append(want, "rdma")
	}
	for key := range r.Unified {
		if name, _, ok := strings.Cut(key, "."); ok && name != "cgroup" {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	return slices.Compact(want)
}

// enable switches controllers on for the children of dir. One that the kernel does
// not offer here is left out: setting a limit of it fails later, by name.
func enable(dir string, want []string) error {
	have, err := readFields(dir + "/cgroup.subtree_control")
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range want {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	offered, err := readFields(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range missing {
		if !slices.Contains(offered, c) {
			continue
		}
		if err := write(dir+"/cgroup.subtree_control", "+"+c); err != nil {
			return fmt.Errorf("switch the %s controller on: %w", c, err)
		}
	}
	return nil
}

// Path is the group's path from the hierarchy's root.
func (g *Group) Path() string { return g.path }

// Dir is the group's directory.
func (g *Group) Dir() string { return g.dir }

// Exists reports whether the group is there.
func (g *Group) Exists() bool {
	var st unix.Stat_t
	return unix.Stat(g.dir, &st) == nil
}

// Open opens the group's directory, for CLONE_INTO_CGROUP. The caller closes it.
func (g *Group) Open() (*os.File, error) {
	f, err := os.OpenFile(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return f, nil
}

// Add moves the process pid into g. It is slow compared with starting there, but
// no limit on the number of processes stands against it.
func (g *Group) Add(pid int) error {
	if err := write(g.dir+"/cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// PidsLeft is how many more processes and threads g may have.
func (g *Group) PidsLeft() uint64 {
	text := g.text("pids.max")
	if text == "" || strings.HasPrefix(text, "max") {
		return math.MaxUint64
	}
	limit, used := parseNumber(text), g.number("pids.current")
	return limit - min(limit, used)
}

// Sub makes the group path below g and returns it.
func (g *Group) Sub(path string) (*Group, error) {
	clean, err := Clean(path)
	if err != nil {
		return nil, err
	}
	s := &Group{path: g.path + clean, dir: g.dir + clean}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return s, nil
}

// PIDs lists the processes in g and the groups below it, sorted, in the caller's
// PID namespace. A group that is gone has none.
func (g *Group) PIDs() ([]int, error) {
	var pids []int
	err := g.walk(func(dir string) error {
		fields, err := readFields(dir + "/cgroup.procs")
		for _, f := range fields {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
		return err
	})
	slices.Sort(pids)
	return pids, err
}

// walk calls f for g's directory and those below it, each before its own.
func (g *Group) walk(f func(dir string) error) error {
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = f(path)
		}
		return err
	})
	if gone(err) {
		return nil
	}
	return err
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Kill kills all processes of g and of the groups below it, at once.
func (g *Group) Kill() error {
	err := write(g.dir+"/cgroup.kill", "1")
	if gone(err) {
		return nil
	}
	return err
}

// Freeze stops all processes and returns when they stand still.
func (g *Group) Freeze(ctx context.Context) error { return g.setFrozen(ctx, "1") }

// Thaw lets them run on.
func (g *Group) Thaw(ctx context.Context) error { return g.setFrozen(ctx, "0") }

func (g *Group) setFrozen(ctx context.Context, state string) error {
	if err := write(g.dir+"/cgroup.freeze", state); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := g.await(ctx, "frozen", state); err != nil {
		_ = write(g.dir+"/cgroup.freeze", "0")
		return fmt.Errorf("cgroup %s: freeze=%s: %w", g.path, state, err)
	}
	return nil
}

// Frozen reports whether all processes stand still.
func (g *Group) Frozen() (bool, error) {
	v, err := event(g.dir+"/cgroup.events", "frozen")
	if gone(err) {
		return false, nil
	}
	return v == "1", err
}

// Delete kills what is in g and removes it and the groups below it. It may be
// called for a group that is gone.
func (g *Group) Delete(ctx context.Context) error {
	if err := unix.Rmdir(g.dir); err == nil || err == unix.ENOENT {
		return nil
	}
	if err := g.Kill(); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	_ = write(g.dir+"/cgroup.freeze", "0")
	if err := g.await(ctx, "populated", "0"); err != nil && !gone(err) {
		return fmt.Errorf("cgroup %s: processes do not die: %w", g.path, err)
	}
	var dirs []string
	if err := g.walk(func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeDir(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// removeDir removes one group. The kernel reports a group as empty a moment before
// its last process has let go of it.
func removeDir(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || wait > time.Second {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", dir, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// await blocks until cgroup.events says key=value. The kernel announces each
// change of the file.
func (g *Group) await(ctx context.Context, key, value string) error {
	w, err := watch(g.dir + "/cgroup.events")
	if err != nil {
		return err
	}
	defer w.close()
	for {
		v, err := event(g.dir+"/cgroup.events", key)
		if err != nil || v == value {
			return err
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

// event reads one "key value" line of a file.
func event(file, key string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, " "); ok && k == key {
			return strings.TrimSpace(v), nil
		}
	}
	return "", nil
}

func readFields(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	return strings.Fields(string(b)), err
}

// write writes a control file in one call, as the kernel wants it.
func write(file, data string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(data))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return &fs.PathError{Op: fmt.Sprintf("write %q to", data), Path: file, Err: err}
	}
	return nil
}
