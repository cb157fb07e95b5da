package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
)

// finding is what the doctor has to say about one thing.
type finding struct {
	Check  string `json:"check"`
	Result result `json:"result"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

type result string

const (
	good result = "ok"
	meh  result = "warning" // it works, but could be better
	bad  result = "problem" // the machine cannot start or run well

	skipped result = "skipped" // it does not apply to this host
)

func (a *app) doctorCommand() *cobra.Command {
	var format string
	var selfTest bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check what the machine needs of this host",
		Long: `Check what the machine needs of this host, and say how to mend what is wrong. It
changes nothing. The exit code is 4 when the host cannot run the machine.

With --selftest, try what the machine is for: boot one of its own, run containers
in it, share a folder, publish a port, build an image, pause, save and restart it,
and remove it without a trace. It takes a minute or two; your machines are not touched.`,
		Example: "  berth doctor\n  berth doctor --selftest\n  berth doctor --format json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return a.diagnose(cmd.Context(), format == "json", selfTest)
		},
	}
	c.Flags().BoolVar(&selfTest, "selftest", false, "Try everything on a machine of its own")
	addFormat(c, &format)
	return c
}

// diagnose examines the host or tries a machine, and shows each finding at once,
// or all of them as JSON at the end.
func (a *app) diagnose(ctx context.Context, asJSON, selfTest bool) error {
	var findings []finding
	tell := func(f finding) {
		findings = append(findings, f)
		if !asJSON {
			a.printFinding(f)
		}
	}
	var err error
	if selfTest {
		err = a.selfTest(ctx, tell)
	} else {
		err = a.examine(ctx, tell)
	}
	if asJSON && len(findings) > 0 {
		err = errors.Join(err, a.json(findings))
	}
	if err != nil {
		return err
	}
	return verdict(findings)
}

func verdict(findings []finding) error {
	problems, code := 0, exitFailure
	for _, f := range findings {
		if f.Result != bad {
			continue
		}
		problems++
		if f.Check == "hypervisor" {
			code = exitUnsupported
		}
	}
	if problems == 0 {
		return nil
	}
	return &codeError{code, fmt.Errorf("%d of %d checks found a problem", problems, len(findings))}
}

func (a *app) printFinding(f finding) {
	label := string(f.Result)
	if isTerminal(a.out) && a.getenv("NO_COLOR") == "" {
		label = map[result]string{good: "\x1b[32m", meh: "\x1b[33m", bad: "\x1b[31m", skipped: "\x1b[2m"}[f.Result] + label + "\x1b[0m"
	}
	fmt.Fprintf(a.out, "%s: %s: %s\n", label, f.Check, f.Detail)
	if f.Remedy != "" {
		fmt.Fprintf(a.out, "    %s\n", f.Remedy)
	}
}

// examine runs all checks, in the order in which a start would meet them.
func (a *app) examine(ctx context.Context, tell func(finding)) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	tell(a.checkConfig(m))
	tell(a.checkPermissions(m))
	tell(a.checkSpace(m))
	tell(a.checkSockets(m))
	tell(a.checkImage(ctx))
	tell(a.checkHypervisor(ctx, m))
	tell(a.checkMachine(ctx, m))
	return nil
}

func (a *app) checkConfig(m machine.Machine) finding {
	c, err := m.LoadConfig()
	if err != nil {
		return finding{"configuration", bad, err.Error(), "Edit that line, or delete the file: its defaults work."}
	}
	return finding{"configuration", good, fmt.Sprintf("%s: %d CPUs, %s memory", m.ConfigFile, c.CPUs, c.Memory), ""}
}

// checkPermissions tries what a start does: to write into the machine's directories.
func (a *app) checkPermissions(m machine.Machine) finding {
	for _, dir := range []string{m.DataDir, m.StateDir} {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		f, err := os.CreateTemp(dir, ".doctor.*")
		if err != nil {
			return finding{"permissions", bad, err.Error(), "Give the directory back to yourself: " + fmt.Sprintf(giveBack, dir)}
		}
		f.Close()
		os.Remove(f.Name())
	}
	if info, err := os.Stat(m.ClientKeyFile()); err == nil && info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
		return finding{"permissions", bad, m.ClientKeyFile() + " can be read by others", "chmod 600 " + m.ClientKeyFile()}
	}
	return finding{"permissions", good, "the machine's files are yours", ""}
}

func (a *app) checkSpace(m machine.Machine) finding {
	if err := m.CheckSpace(); err != nil {
		return finding{"disk space", bad, err.Error(), "Delete what you do not need; \"berth system prune\" frees space of a machine that runs."}
	}
	dir := m.DataDir
	if _, err := os.Stat(dir); err != nil {
		return finding{"disk space", good, "enough to start", ""}
	}
	free, err := machine.FreeBytes(dir)
	if err == nil && free < 5<<30 {
		return finding{"disk space", meh, fmt.Sprintf("%s are left for %s", machine.Size(free), dir), "Images may soon not fit."}
	}
	return finding{"disk space", good, fmt.Sprintf("%s are left for %s", machine.Size(free), dir), ""}
}

func (a *app) checkSockets(m machine.Machine) finding {
	if err := m.CheckSocketDir(); err != nil {
		return finding{"sockets", bad, err.Error(), ""}
	}
	return finding{"sockets", good, m.DockerHost(), ""}
}

func (a *app) checkImage(ctx context.Context) finding {
	image, err := a.image(ctx, a.imageDir())
	if err != nil {
		return finding{"guest image", bad, err.Error(), ""}
	}
	return finding{"guest image", good, fmt.Sprintf("%s: version %s for %s, its checksums are right", a.imageDir(), image.Version, image.Arch), ""}
}

// probeTimeout bounds what a probe may take on a slow host.
const probeTimeout = 30 * time.Second

func (a *app) checkHypervisor(ctx context.Context, m machine.Machine) finding {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := m.LoadConfig()
	if err != nil {
		c = machine.DefaultConfig()
	}
	caps, err := a.driver(m, c, slog.New(slog.NewTextHandler(io.Discard, nil))).Probe(ctx)
	if err != nil {
		return finding{"hypervisor", bad, err.Error(), ""}
	}
	detail := fmt.Sprintf("%s with %s", caps.Version, caps.Acceleration)
	if caps.Reason != "" {
		return finding{"hypervisor", meh, detail, caps.Reason}
	}
	return finding{"hypervisor", good, detail, ""}
}

func (a *app) checkMachine(ctx context.Context, m machine.Machine) finding {
	s, err := launch.Status(ctx, m)
	if err != nil {
		return finding{"machine", bad, err.Error(), ""}
	}
	if s.State == api.Failed {
		return finding{"machine", meh, "it is stopped: " + s.LastError, "\"berth start" + operand(m.Name) + "\" repairs what is left."}
	}
	if s.Engine != nil && s.Engine.Restarts > 0 {
		return finding{"machine", meh, fmt.Sprintf("its engine was restarted %d times: %s", s.Engine.Restarts, s.Engine.Reason),
			"Report it with the output of \"berth logs" + operand(m.Name) + "\"."}
	}
	return finding{"machine", good, fmt.Sprintf("%q is %s", m.Name, s.State), ""}
}
