package oci

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/moby/sys/signal"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/cgroup"
)

// createFlags are those that create and run share.
type createFlags struct {
	bundle, pidFile, consoleSocket string
	noPivot                        bool
	preserveFDs                    int
}

func (f *createFlags) register(fs *flag.FlagSet) {
	for _, name := range []string{"bundle", "b"} {
		fs.StringVar(&f.bundle, name, ".", "directory with config.json")
	}
	fs.StringVar(&f.pidFile, "pid-file", "", "file to write the process's number to")
	fs.StringVar(&f.consoleSocket, "console-socket", "", "unix socket that gets the terminal")
	fs.BoolVar(&f.noPivot, "no-pivot", false, "not supported")
	fs.Bool("no-new-keyring", false, "accepted for compatibility")
	fs.IntVar(&f.preserveFDs, "preserve-fds", 0, "pass that many descriptors, from 3 on")
}

// config makes the container's configuration.
func (a *app) config(id string, f *createFlags) (container.Config, error) {
	var cfg container.Config
	if f.noPivot {
		return cfg, errors.New("--no-pivot: not supported: containers always get a root of their own")
	}
	bundle, err := filepath.Abs(f.bundle)
	if err != nil {
		return cfg, err
	}
	spec, err := loadSpec(bundle)
	if err != nil {
		return cfg, err
	}
	extra, err := preserved(f.preserveFDs)
	if err != nil {
		return cfg, err
	}
	cfg = container.Config{
		ID: id, StateDir: a.root, Bundle: bundle, Spec: spec, ExecPath: a.execBinary(),
		Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr, ExtraFiles: extra,
	}
	if spec.Linux != nil && spec.Linux.CgroupsPath == "" {
		if _, err := cgroup.Root(); err == nil {
			cfg.CgroupPath = "/oci/" + id
		}
	}
	if f.consoleSocket != "" {
		if spec.Process != nil && !spec.Process.Terminal {
			return cfg, errors.New("--console-socket: the process has no terminal (process.terminal)")
		}
		cfg.Console = func(master *os.File) error { return sendConsole(f.consoleSocket, master) }
	}
	return cfg, nil
}

func preserved(n int) ([]*os.File, error) {
	var files []*os.File
	for i := range n {
		if _, err := unix.FcntlInt(uintptr(3+i), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("--preserve-fds: descriptor %d is not open", 3+i)
		}
		files = append(files, os.NewFile(uintptr(3+i), fmt.Sprintf("descriptor %d", 3+i)))
	}
	return files, nil
}

func (a *app) create(ctx context.Context, args []string) (int, error) {
	var f createFlags
	fs := a.flags("create", "ID")
	f.register(fs)
	if err := parse(fs, args, 1, 1); err != nil {
		return 1, err
	}
	cfg, err := a.config(fs.Arg(0), &f)
	if err != nil {
		return 1, err
	}
	cfg.Detached = true
	c, err := container.Create(ctx, cfg)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	if err := writePID(f.pidFile, c.PID()); err != nil {
		return 1, errors.Join(err, c.Delete(ctx))
	}
	return 0, nil
}

// writePID writes the file whole: whoever sees it sees the number.
func writePID(path string, pid int) error {
	if path == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}

func (a *app) start(ctx context.Context, args []string) (int, error) {
	c, err := a.oneID("start", args)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	return 0, a.warn(c.Start(ctx))
}

func (a *app) run(ctx context.Context, args []string) (int, error) {
	var f createFlags
	var detach bool
	fs := a.flags("run", "ID")
	f.register(fs)
	for _, name := range []string{"detach", "d"} {
		fs.BoolVar(&detach, name, false, "do not wait for the process")
	}
	keep := fs.Bool("keep", false, "do not delete the container when it has ended")
	if err := parse(fs, args, 1, 1); err != nil {
		return 1, err
	}
	cfg, err := a.config(fs.Arg(0), &f)
	if err != nil {
		return 1, err
	}
	if detach && cfg.Spec.Process != nil && cfg.Spec.Process.Terminal && f.consoleSocket == "" {
		return 1, errors.New("--detach with a terminal needs --console-socket")
	}
	t := &terminal{in: a.stdin, out: a.stdout}
	defer t.close()
	if cfg.Console == nil {
		cfg.Console = t.take
	}
	c, err := container.Create(ctx, cfg)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	if err := writePID(f.pidFile, c.PID()); err != nil {
		return 1, errors.Join(err, c.Delete(ctx))
	}
	if err := a.warn(c.Start(ctx)); err != nil {
		return 1, errors.Join(err, c.Delete(ctx))
	}
	if detach {
		return 0, nil
	}
	code, err := t.follow(ctx, c)
	if !*keep {
		err = errors.Join(err, a.warn(c.Delete(ctx)))
	}
	return code, err
}

// warn reports an error that is only a warning, and returns any other.
func (a *app) warn(err error) error {
	if errors.Is(err, container.ErrHook) {
		a.report(err)
		return nil
	}
	return err
}

// ociState is what state and list print: the OCI's, and runc's additions.
type ociState struct {
	specs.State
	Rootfs  string    `json:"rootfs"`
	Created time.Time `json:"created"`
}

func stateOf(c *container.Container) (ociState, error) {
	s, err := c.State()
	if err != nil {
		return ociState{}, err
	}
	return ociState{State: *s, Rootfs: c.Rootfs(), Created: c.Created()}, nil
}

func (a *app) state(_ context.Context, args []string) (int, error) {
	c, err := a.oneID("state", args)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	s, err := stateOf(c)
	if err != nil {
		return 1, err
	}
	return 0, a.printJSON(s)
}

func (a *app) kill(_ context.Context, args []string) (int, error) {
	fs := a.flags("kill", "ID [SIGNAL]")
	var all bool
	for _, name := range []string{"all", "a"} {
		fs.BoolVar(&all, name, false, "signal all processes of the container")
	}
	if err := parse(fs, args, 1, 2); err != nil {
		return 1, err
	}
	sig := syscall.SIGTERM
	if fs.NArg() == 2 {
		var err error
		if sig, err = signal.ParseSignal(fs.Arg(1)); err != nil {
			return 1, err
		}
	}
	c, err := a.load(fs.Arg(0))
	if err != nil {
		return 1, err
	}
	defer c.Close()
	if !all {
		return 0, c.Signal(sig)
	}
	if sig == syscall.SIGKILL {
		return 0, c.Kill()
	}
	pids, err := c.PIDs()
	for _, pid := range pids {
		if kerr := unix.Kill(pid, sig); kerr != nil && kerr != unix.ESRCH {
			err = errors.Join(err, kerr)
		}
	}
	return 0, err
}

func (a *app) delete(ctx context.Context, args []string) (int, error) {
	fs := a.flags("delete", "ID...")
	var force bool
	for _, name := range []string{"force", "f"} {
		fs.BoolVar(&force, name, false, "kill it first if it runs; an unknown container is no error")
	}
	if err := parse(fs, args, 1, -1); err != nil {
		return 1, err
	}
	var errs []error
	for _, id := range fs.Args() {
		errs = append(errs, a.deleteOne(ctx, id, force))
	}
	return 0, errors.Join(errs...)
}

func (a *app) deleteOne(ctx context.Context, id string, force bool) error {
	c, err := a.load(id)
	if errors.Is(err, container.ErrNotFound) && force {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status != container.Stopped && !force {
		return fmt.Errorf("delete container %s, which is %s: stop it first, or use --force", id, status)
	}
	return a.warn(c.Delete(ctx))
}

func (a *app) list(_ context.Context, args []string) (int, error) {
	fs := a.flags("list", "")
	var format string
	var quiet bool
	for _, name := range []string{"format", "f"} {
		fs.StringVar(&format, name, "table", "table or json")
	}
	for _, name := range []string{"quiet", "q"} {
		fs.BoolVar(&quiet, name, false, "print IDs only")
	}
	if err := parse(fs, args, 0, 0); err != nil {
		return 1, err
	}
	ids, err := container.List(a.root)
	if err != nil {
		return 1, err
	}
	all := []ociState{}
	for _, id := range ids {
		if quiet {
			fmt.Fprintln(a.stdout, id)
			continue
		}
		c, err := a.load(id)
		if errors.Is(err, container.ErrNotFound) {
			continue
		}
		if err != nil {
			return 1, err
		}
		s, err := stateOf(c)
		c.Close()
		if err != nil {
			return 1, err
		}
		all = append(all, s)
	}
	switch {
	case quiet:
		return 0, nil
	case format == "json":
		return 0, a.printJSON(all)
	case format != "table":
		return 1, fmt.Errorf("--format: %q is neither table nor json", format)
	}
	w := tabwriter.NewWriter(a.stdout, 12, 1, 3, ' ', 0)
	fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\n")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano))
	}
	return 0, w.Flush()
}

func (a *app) ps(_ context.Context, args []string) (int, error) {
	fs := a.flags("ps", "ID")
	var format string
	for _, name := range []string{"format", "f"} {
		fs.StringVar(&format, name, "table", "table or json")
	}
	if err := parse(fs, args, 1, -1); err != nil {
		return 1, err
	}
	c, err := a.load(fs.Arg(0))
	if err != nil {
		return 1, err
	}
	defer c.Close()
	pids, err := c.PIDs()
	if err != nil {
		return 1, err
	}
	if format == "json" {
		return 0, a.printJSON(pids)
	}
	w := tabwriter.NewWriter(a.stdout, 8, 1, 2, ' ', 0)
	fmt.Fprint(w, "PID\tCOMMAND\n")
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil {
			fmt.Fprintf(w, "%d\t%s\n", pid, strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " ")))
		}
	}
	return 0, w.Flush()
}

func (a *app) pause(ctx context.Context, args []string) (int, error) {
	c, err := a.oneID("pause", args)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	return 0, c.Pause(ctx)
}

func (a *app) resume(ctx context.Context, args []string) (int, error) {
	c, err := a.oneID("resume", args)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	return 0, c.Resume(ctx)
}
