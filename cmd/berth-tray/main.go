// Berth-tray shows Berth's icon in the desktop's status area. It is a program of
// its own, which "berth tray" and the user's login start, since the library that
// draws the menu binds the process to its first thread, and on Windows a program
// without a console must be built as one.
//
// It shows what host/tray says, runs berth for what takes more than a word to the
// machine's daemon, and does nothing while nothing happens.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/tray"
	"github.com/berthvm/berth/host/version"
)

func main() {
	home := flag.String("home", "", "Berth's `folder`, as BERTH_HOME names it")
	name := flag.String("machine", machine.Default, "the machine's `name`")
	show := flag.Bool("version", false, "print the version and quit")
	flag.Parse()
	log.SetFlags(log.LstdFlags)
	if *show {
		fmt.Println("Berth version", version.String())
		return
	}
	if *home != "" {
		os.Setenv(machine.EnvHome, *home)
	}
	if err := run(*name); err != nil {
		fmt.Fprintln(os.Stderr, "berth-tray:", err)
		if errors.Is(err, tray.ErrShown) {
			return
		}
		os.Exit(1)
	}
}

// run shows the icon until somebody quits it. It runs on the first thread, which
// is the only one that macOS lets draw.
func run(name string) error {
	home, err := machine.Locate(os.Getenv)
	if err != nil {
		return err
	}
	m, err := home.Machine(name)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	lock, err := tray.Hold(home)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	return display(ctx, func(ctx context.Context, s screen) error {
		d := desk{
			home: home, machine: m, screen: s, self: self, berth: berthProgram(self),
			launch: launch,
			around: tray.Surroundings{GOOS: runtime.GOOS, Getenv: os.Getenv, LookPath: lookPath},
		}
		return d.run(ctx)
	})
}

// berthProgram is berth beside this program.
func berthProgram(self string) string {
	name := "berth"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(filepath.Dir(self), name)
}
