package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/host/logfile"
	"github.com/berthvm/berth/vm/hyperv/elevated"
)

// elevatedWithin bounds the wait for what an elevated copy of this program does: the
// user has to agree first.
const elevatedWithin = 3 * time.Minute

// platformCommands are those that one platform alone has.
func (a *app) platformCommands() []*cobra.Command { return []*cobra.Command{a.serviceCommand()} }

func (a *app) serviceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "service",
		Short: "The service that starts virtual machines for you",
		Long: `Windows lets only administrators start virtual machines. The service does that,
and nothing else, for the user who installs it, so that Berth itself needs no such
right. It runs only while a machine does, and is a copy of this program in the
folder of programs, where only administrators can change it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.serviceInstall(), a.serviceUninstall(), a.serviceStatus(), a.serviceRun())
	return c
}

func (a *app) serviceInstall() *cobra.Command {
	var user string
	c := &cobra.Command{
		Use:     "install",
		Short:   "Install the service for you (Windows asks for an administrator's consent, once)",
		Example: "  berth service install",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("cannot find this program: %w", err)
			}
			if user == "" {
				if user, err = ownSID(); err != nil {
					return err
				}
			}
			if !isElevated() {
				fmt.Fprintln(a.err, "Windows will ask whether Berth may make changes: it installs a service that starts your virtual machine.")
				return a.elevate(cmd.Context(), []string{"service", "install", "--user", user}, true)
			}
			if err := elevated.Install(self, user, "service", "run", "--user"); err != nil {
				return err
			}
			fmt.Fprintln(a.err, "The service is installed. \"berth start\" needs no administrator from now on.")
			return nil
		},
	}
	c.Flags().StringVar(&user, "user", "", "SID of the user whom it is for (default: you)")
	return c
}

func (a *app) serviceUninstall() *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the service and its files",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s, err := elevated.Query(); err == nil && !s.Installed {
				fmt.Fprintln(a.err, "The service is not installed.")
				return nil
			}
			return a.uninstallService(cmd.Context())
		},
	}
}

func (a *app) uninstallService(ctx context.Context) error {
	if !isElevated() {
		fmt.Fprintln(a.err, "Windows will ask whether Berth may make changes: it removes its service.")
		return a.elevate(ctx, []string{"service", "uninstall"}, false)
	}
	if err := elevated.Uninstall(); err != nil {
		return err
	}
	fmt.Fprintln(a.err, "The service is removed.")
	return nil
}

func (a *app) serviceStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the service is installed, and runs",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := elevated.Query()
			if err != nil {
				return err
			}
			switch {
			case !s.Installed:
				fmt.Fprintln(a.out, "not installed")
			case s.Running:
				fmt.Fprintln(a.out, "installed, running")
			default:
				fmt.Fprintln(a.out, "installed, not running: it is started when it is needed")
			}
			return nil
		},
	}
}

// serviceRun is the service itself. Its log lies beside its program: elsewhere
// somebody could put a link in its way.
func (a *app) serviceRun() *cobra.Command {
	var user string
	c := &cobra.Command{
		Use:    "run",
		Short:  "Be the service (Windows does it)",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			file, err := logfile.Open(filepath.Join(filepath.Dir(self), "service.log"), 0)
			if err != nil {
				return err
			}
			defer file.Close()
			return elevated.Run(user, slog.New(slog.NewTextHandler(file, nil)))
		},
	}
	c.Flags().StringVar(&user, "user", "", "SID of the user whom it is for")
	c.MarkFlagRequired("user")
	return c
}

func isElevated() bool { return windows.GetCurrentProcessToken().IsElevated() }

func ownSID() (string, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", fmt.Errorf("cannot find out who you are: %w", err)
	}
	return user.User.Sid.String(), nil
}

// elevate runs this program again as an administrator, and waits until the service
// is there, or is not.
func (a *app) elevate(ctx context.Context, args []string, installed bool) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	verb, err1 := windows.UTF16PtrFromString("runas")
	file, err2 := windows.UTF16PtrFromString(self)
	line, err3 := windows.UTF16PtrFromString(strings.Join(args, " ")) // a SID and words: nothing to quote
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	err = windows.ShellExecute(0, verb, file, line, nil, windows.SW_HIDE)
	if errors.Is(err, windows.ERROR_CANCELLED) {
		return errors.New("nothing was changed: Windows was told that Berth may not")
	}
	if err != nil {
		return fmt.Errorf("cannot ask Windows for an administrator's rights: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, elevatedWithin)
	defer cancel()
	for {
		s, err := elevated.Query()
		if err == nil && s.Installed == installed {
			fmt.Fprintln(a.err, map[bool]string{true: "The service is installed.", false: "The service is removed."}[installed])
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("it did not happen: run the same command in an administrator's terminal to see why")
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// systemParts are what an administrator has installed for Berth.
func systemParts() []installed {
	what := "the service that starts virtual machines (Windows will ask for an administrator's consent)"
	if dir, err := elevated.ProgramDir(); err == nil {
		what += ": " + dir
	}
	return []installed{{
		what: what,
		there: func() bool {
			s, err := elevated.Query()
			return err == nil && s.Installed
		},
		remove: func(ctx context.Context, a *app) error { return a.uninstallService(ctx) },
	}}
}

// giveBack makes the directory and what is in it the user's again.
const giveBack = `icacls "%s" /setowner "%%USERNAME%%" /T`
