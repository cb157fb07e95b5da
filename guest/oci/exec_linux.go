package oci

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
)

// execFlags are the flags of exec.
type execFlags struct {
	cwd, user, process, pidFile, consoleSocket, apparmor, label, cgroup string
	env, gids, caps                                                     stringsFlag
	tty, detach, noNewPrivs                                             bool
	preserveFDs                                                         int
}

func (a *app) exec(ctx context.Context, args []string) (int, error) {
	var f execFlags
	fs := a.flags("exec", "ID COMMAND [ARG...]")
	fs.StringVar(&f.cwd, "cwd", "", "working directory")
	fs.StringVar(&f.pidFile, "pid-file", "", "file to write the process's number to")
	fs.StringVar(&f.consoleSocket, "console-socket", "", "unix socket that gets the terminal")
	fs.StringVar(&f.apparmor, "apparmor", "", "not supported")
	fs.StringVar(&f.label, "process-label", "", "not supported")
	fs.StringVar(&f.cgroup, "cgroup", "", "cgroup below the container's to run in")
	fs.BoolVar(&f.noNewPrivs, "no-new-privs", false, "set no_new_privs")
	fs.Bool("ignore-paused", false, "accepted for compatibility")
	fs.IntVar(&f.preserveFDs, "preserve-fds", 0, "pass that many descriptors, from 3 on")
	for _, name := range []string{"user", "u"} {
		fs.StringVar(&f.user, name, "", "UID[:GID]")
	}
	for _, name := range []string{"process", "p"} {
		fs.StringVar(&f.process, name, "", "file with the process as JSON")
	}
	for _, name := range []string{"env", "e"} {
		fs.Var(&f.env, name, "NAME=value; may be repeated")
	}
	for _, name := range []string{"additional-gids", "g"} {
		fs.Var(&f.gids, name, "further group; may be repeated")
	}
	for _, name := range []string{"cap", "c"} {
		fs.Var(&f.caps, name, "capability to add; may be repeated")
	}
	for _, name := range []string{"tty", "t"} {
		fs.BoolVar(&f.tty, name, false, "give it a terminal")
	}
	for _, name := range []string{"detach", "d"} {
		fs.BoolVar(&f.detach, name, false, "do not wait for the process")
	}
	if err := parse(fs, args, 1, -1); err != nil {
		return 1, err
	}
	c, err := a.load(fs.Arg(0))
	if err != nil {
		return 1, err
	}
	defer c.Close()
	process, err := f.makeProcess(c, fs.Args()[1:])
	if err != nil {
		return 1, err
	}
	return a.execProcess(ctx, c, &f, process)
}

func (a *app) execProcess(ctx context.Context, c *container.Container, f *execFlags, pr *specs.Process) (int, error) {
	extra, err := preserved(f.preserveFDs)
	if err != nil {
		return 1, err
	}
	t := &terminal{in: a.stdin, out: a.stdout}
	defer t.close()
	cfg := container.ExecConfig{
		Process: pr, Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr, ExtraFiles: extra,
		ExecPath: a.execBinary(), Cgroup: f.cgroup, Console: t.take,
	}
	switch {
	case f.consoleSocket != "":
		cfg.Console = func(m *os.File) error { return sendConsole(f.consoleSocket, m) }
	case f.detach && pr.Terminal:
		return 1, errors.New("--detach with a terminal needs --console-socket")
	}
	p, err := c.Exec(ctx, cfg)
	if err != nil {
		return 1, err
	}
	defer p.Close()
	if err := writePID(f.pidFile, p.PID()); err != nil {
		return 1, err
	}
	if f.detach {
		return 0, nil
	}
	return t.follow(ctx, p)
}

// makeProcess is the process as the flags describe it, on the base of the
// container's own.
func (f *execFlags) makeProcess(c *container.Container, args []string) (*specs.Process, error) {
	if f.apparmor != "" || f.label != "" {
		return nil, errors.New("--apparmor, --process-label: not supported")
	}
	pr := new(specs.Process)
	if f.process != "" {
		if err := decodeFile(f.process, pr); err != nil {
			return nil, err
		}
		return pr, nil
	}
	if c.Spec() == nil || c.Spec().Process == nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID(), container.ErrNotRunning)
	}
	*pr = *c.Spec().Process
	if len(args) == 0 {
		return nil, errors.New("exec: no command was given")
	}
	pr.Args, pr.Terminal = args, f.tty
	pr.Env = append(slices.Clone(pr.Env), f.env...)
	if f.cwd != "" {
		pr.Cwd = f.cwd
	}
	pr.NoNewPrivileges = pr.NoNewPrivileges || f.noNewPrivs
	if len(f.caps) > 0 {
		pr.Capabilities = withCaps(pr.Capabilities, f.caps)
	}
	return pr, f.setUser(&pr.User)
}

func (f *execFlags) setUser(u *specs.User) error {
	uid, gid, hasGID := strings.Cut(f.user, ":")
	if f.user != "" {
		n, err := parseID(uid)
		if err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		u.UID = n
	}
	if hasGID {
		n, err := parseID(gid)
		if err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		u.GID = n
	}
	for _, g := range f.gids {
		n, err := parseID(g)
		if err != nil {
			return fmt.Errorf("--additional-gids: %w", err)
		}
		u.AdditionalGids = append(slices.Clone(u.AdditionalGids), n)
	}
	return nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return 0, fmt.Errorf("%q is not a numeric ID", s)
	}
	return uint32(n), nil
}

func withCaps(old *specs.LinuxCapabilities, add []string) *specs.LinuxCapabilities {
	caps := new(specs.LinuxCapabilities)
	if old != nil {
		*caps = *old
	}
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
		*set = append(slices.Clone(*set), add...)
	}
	return caps
}
