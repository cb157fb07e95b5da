package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/autostart"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/tray"
)

func (a *app) trayCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "tray",
		Short: "Show an icon for the machine in the desktop's status area",
		Long: `Show an icon for the machine in the desktop's status area, with a menu: start and
stop the machine, its containers, what it uses. There is one icon per user; it
shows at once what is done elsewhere, and costs nothing while nothing happens.`,
		Example: "  berth tray\n  berth tray login on\n  berth tray quit",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := a.existing()
			if err != nil {
				return err
			}
			return a.showTray(m)
		},
	}
	quit := &cobra.Command{
		Use:   "quit",
		Short: "Take the icon away (the machine goes on)",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return tray.Dismiss(cmd.Context(), a.home)
		},
	}
	login := &cobra.Command{
		Use:       "login [on|off]",
		Short:     "Say whether the icon is shown after each login, or change it",
		Example:   "  berth tray login\n  berth tray login on",
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trayLogin(args)
		},
	}
	c.AddCommand(quit, login)
	return c
}

// trayProgram is the program that shows the icon.
func trayProgram() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("cannot find this program: %w", err)
	}
	program := tray.ProgramFile(self, runtime.GOOS)
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%s is missing: reinstall Berth", program)
	}
	return program, nil
}

// trayTimeout bounds how long an icon may take to appear.
const trayTimeout = 5 * time.Second

func (a *app) showTray(m machine.Machine) error {
	if tray.Shown(a.home) {
		fmt.Fprintln(a.err, "The icon is shown already.")
		return nil
	}
	program, err := trayProgram()
	if err != nil {
		return err
	}
	entry := tray.LoginEntry(a.home, program, m.Name)
	logFile := tray.LogFile(a.home)
	ended, err := launch.Detached(append([]string{program}, entry.Args...), logFile)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(trayTimeout); time.Now().Before(deadline); {
		select {
		case <-ended:
			return fmt.Errorf("cannot show the icon%s: see %s", launch.LastWords(logFile), logFile)
		case <-time.After(50 * time.Millisecond):
			if tray.Shown(a.home) {
				return nil
			}
		}
	}
	return fmt.Errorf("the icon has not come after %s: see %s", trayTimeout, logFile)
}

func (a *app) trayLogin(args []string) error {
	name := tray.LoginName(a.home)
	switch {
	case len(args) == 0:
		state := map[bool]string{true: "on", false: "off"}[autostart.Enabled(name)]
		fmt.Fprintln(a.out, state)
		return nil
	case len(args) == 1 && args[0] == "on":
		m, err := a.existing()
		if err != nil {
			return err
		}
		program, err := trayProgram()
		if err != nil {
			return err
		}
		return autostart.Enable(tray.LoginEntry(a.home, program, m.Name))
	case len(args) == 1 && args[0] == "off":
		return autostart.Disable(name)
	}
	return &codeError{exitUsage, errors.New(`"berth tray login" takes on, off or nothing`)}
}
