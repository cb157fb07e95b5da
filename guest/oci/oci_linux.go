package oci

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
)

// defaultRoot keeps the state of the command line's containers, apart from the
// engine's.
const defaultRoot = "/run/berth/oci"

// app is one invocation.
type app struct {
	root, log, logFormat string
	execPath             string
	stdin                *os.File
	stdout, stderr       *os.File
}

// command is one subcommand. run returns the exit code; an error makes it 1.
type command struct {
	name, usage, help string
	run               func(a *app, ctx context.Context, args []string) (int, error)
}

func commands() []command {
	return []command{
		{"create", "create [flags] ID", "create a container, without starting its program", (*app).create},
		{"start", "start ID", "start the program of a created container", (*app).start},
		{"run", "run [flags] ID", "create and start a container", (*app).run},
		{"state", "state ID", "print a container's state", (*app).state},
		{"kill", "kill [flags] ID [SIGNAL]", "send a signal to a container's process", (*app).kill},
		{"delete", "delete [flags] ID...", "delete stopped containers", (*app).delete},
		{"exec", "exec [flags] ID COMMAND [ARG...]", "run a further process in a container", (*app).exec},
		{"list", "list [flags]", "list the containers", (*app).list},
		{"ps", "ps [flags] ID", "list a container's processes", (*app).ps},
		{"pause", "pause ID", "freeze a container's processes", (*app).pause},
		{"resume", "resume ID", "let a paused container go on", (*app).resume},
		{"update", "update [flags] ID", "change a container's limits", (*app).update},
		{"features", "features", "print what this runtime can do", (*app).features},
		{"spec", "spec [flags]", "write an example config.json", (*app).spec},
	}
}

// errUsage is returned for a command line that makes no sense; the flag package
// has explained it already.
var errUsage = errors.New("wrong usage")

// Main runs the command line args (without the program's name) and returns the
// exit code.
func Main(args []string) int {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	return a.main(context.Background(), args)
}

func (a *app) main(ctx context.Context, args []string) int {
	fs := flag.NewFlagSet("oci", flag.ContinueOnError)
	fs.SetOutput(a.stderr)
	fs.StringVar(&a.root, "root", defaultRoot, "directory of the containers' state (a tmpfs)")
	fs.StringVar(&a.log, "log", "", "file to append errors to")
	fs.StringVar(&a.logFormat, "log-format", "text", "text or json")
	fs.StringVar(&a.execPath, "berth-exec", "", "the first process of containers")
	fs.Bool("debug", false, "accepted for compatibility")
	version := fs.Bool("version", false, "print the version of the specification")
	systemd := fs.Bool("systemd-cgroup", false, "not supported")
	fs.Func("rootless", "not supported", func(s string) error {
		if s == "auto" || s == "false" {
			return nil
		}
		return errors.New("rootless containers are not supported")
	})
	fs.Usage = func() { a.usage(fs) }
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 1
	case *version:
		fmt.Fprintf(a.stdout, "berth-guest oci\nspec: %s\n", specs.Version)
		return 0
	case *systemd:
		return a.report(errors.New("--systemd-cgroup: there is no systemd in the machine"))
	case a.logFormat != "text" && a.logFormat != "json":
		return a.report(fmt.Errorf("--log-format: %q is neither text nor json", a.logFormat))
	case fs.NArg() == 0:
		a.usage(fs)
		return 1
	}
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return c.name == fs.Arg(0) })
	if i < 0 {
		return a.report(fmt.Errorf("unknown command %q", fs.Arg(0)))
	}
	code, err := all[i].run(a, ctx, fs.Args()[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 1
	case err != nil:
		return a.report(err)
	}
	return code
}

func (a *app) usage(fs *flag.FlagSet) {
	fmt.Fprintln(a.stderr, "Usage: berth-guest oci [flags] COMMAND\n\nCommands:")
	for _, c := range commands() {
		fmt.Fprintf(a.stderr, "  %-40s %s\n", c.usage, c.help)
	}
	fmt.Fprintln(a.stderr, "\nFlags:")
	fs.PrintDefaults()
}

// report tells the user, and the log, whoever reads it.
func (a *app) report(err error) int {
	fmt.Fprintf(a.stderr, "berth-guest oci: %v\n", err)
	if a.log == "" {
		return 1
	}
	f, ferr := os.OpenFile(a.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if ferr != nil {
		fmt.Fprintf(a.stderr, "berth-guest oci: %v\n", ferr)
		return 1
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if a.logFormat == "json" {
		_ = json.NewEncoder(f).Encode(map[string]string{"level": "error", "msg": err.Error(), "time": now})
	} else {
		fmt.Fprintf(f, "time=%q level=error msg=%q\n", now, err.Error())
	}
	return 1
}

// flags begins a command's flag set.
func (a *app) flags(name, operands string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(a.stderr)
	fs.Usage = func() {
		fmt.Fprintf(a.stderr, "Usage: berth-guest oci %s [flags] %s\n", name, operands)
		fs.PrintDefaults()
	}
	return fs
}

// parse parses args and checks the number of operands (most < 0: any).
func parse(fs *flag.FlagSet, args []string, least, most int) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if n := fs.NArg(); n < least || most >= 0 && n > most {
		return fmt.Errorf("%s: wrong number of operands: see --help", fs.Name())
	}
	return nil
}

// oneID parses the arguments of a command that takes nothing but a container.
func (a *app) oneID(name string, args []string) (*container.Container, error) {
	fs := a.flags(name, "ID")
	if err := parse(fs, args, 1, 1); err != nil {
		return nil, err
	}
	return a.load(fs.Arg(0))
}

func (a *app) load(id string) (*container.Container, error) { return container.Load(a.root, id) }

// exec returns the path of berth-exec: the flag's, the one beside this program, or
// the machine's.
func (a *app) execBinary() string {
	if a.execPath != "" {
		return a.execPath
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "berth-exec")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside
		}
	}
	return ""
}

// loadSpec reads a bundle's config.json.
func loadSpec(bundle string) (*specs.Spec, error) {
	spec := new(specs.Spec)
	if err := decodeFile(filepath.Join(bundle, "config.json"), spec); err != nil {
		return nil, err
	}
	return spec, nil
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 16 << 20

func decodeFile(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return decode(f, path, v)
}

// decode reads one JSON value and says in which field an error lies.
func decode(r io.Reader, name string, v any) error {
	dec := json.NewDecoder(io.LimitReader(r, maxConfig))
	err := dec.Decode(v)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("%s: %s: a JSON %s does not fit (want %s)", name, wrong.Field, wrong.Value, wrong.Type)
	case err != nil:
		return fmt.Errorf("%s: not valid JSON: %w", name, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%s: more than one JSON value", name)
	}
	return nil
}

func (a *app) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, string(b))
	return err
}

// stringsFlag is a flag that can be given several times.
type stringsFlag []string

func (s *stringsFlag) String() string     { return strings.Join(*s, ",") }
func (s *stringsFlag) Set(v string) error { *s = append(*s, v); return nil }
