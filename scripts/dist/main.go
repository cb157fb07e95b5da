// Command dist makes Berth's packages: for each system an archive with the
// programs, the guest's images and the shells' completions; for Debian a package;
// for Homebrew and winget the manifests; and beside them a bill of materials and
// the checksums of all. It runs on Linux and macOS, and makes the same bytes of the
// same commit.
//
//	go run ./scripts/dist -version 0.1.0 -o bin/dist [-platforms linux/amd64,...]
//
// Without cgo, which takes a Mac, the programs for macOS run the machine by QEMU
// only, and their archives are named so. With it one archive serves both kinds of
// Mac.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type settings struct {
	version   string
	out       string
	platforms []platform
	when      time.Time // of every file in every archive
}

// platform is one that packages are made for.
type platform struct {
	os, arch string // as GOOS and GOARCH; arch is "universal" for both kinds of Mac
	variant  string // added to names
}

func (p platform) String() string {
	name := p.os + "-" + p.arch
	if p.variant != "" {
		name += "-" + p.variant
	}
	return name
}

// exe is what a program's file name ends with.
func (p platform) exe() string {
	if p.os == "windows" {
		return ".exe"
	}
	return ""
}

// guests are the architectures that the guest's image is made for. Archives hold
// all: one folder may serve several hosts, and the programs take what fits.
var guests = []string{"amd64", "arm64"}

func main() {
	version := flag.String("version", "", "the `version` of the packages")
	out := flag.String("o", "bin/dist", "write to this `directory`, which is made anew")
	list := flag.String("platforms", "", "the `OS/ARCH,...` to make packages for (default all)")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, *version, *out, *list); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, version, out, list string) error {
	if version == "" {
		return errors.New("-version is missing")
	}
	platforms, err := choose(list, runtime.GOOS == "darwin")
	if err != nil {
		return err
	}
	when, err := commitTime(ctx)
	if err != nil {
		return err
	}
	s := settings{version: version, out: out, platforms: platforms, when: when}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	work := filepath.Join(out, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := s.make(ctx, work); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// make builds what all platforms share, then the platforms' own.
func (s settings) make(ctx context.Context, work string) error {
	for _, arch := range guests {
		note("guest image for %s", arch)
		if err := command(ctx, nil, "go", "run", "./images/build", "-arch", arch, "-version", s.version, "-o", filepath.Join(work, "image-"+arch)); err != nil {
			return err
		}
	}
	note("completions")
	if err := completions(ctx, filepath.Join(work, "completions")); err != nil {
		return err
	}
	for _, p := range s.platforms {
		note("%s", p)
		dir := filepath.Join(work, p.String())
		if err := s.programs(ctx, p, dir); err != nil {
			return err
		}
		if err := s.pack(p, dir, work); err != nil {
			return err
		}
	}
	if err := s.manifests(); err != nil {
		return err
	}
	return sums(s.out)
}

// choose reads a list of platforms; an empty one means all. On a Mac the two
// architectures of macOS become one.
func choose(list string, mac bool) ([]platform, error) {
	known := []platform{{"linux", "amd64", ""}, {"linux", "arm64", ""}, {"windows", "amd64", ""}, {"windows", "arm64", ""}}
	if mac {
		known = append(known, platform{"darwin", "universal", ""})
	} else {
		known = append(known, platform{"darwin", "amd64", "qemu"}, platform{"darwin", "arm64", "qemu"})
	}
	if list == "" {
		return known, nil
	}
	var chosen []platform
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, p := range known {
			if p.os+"/"+p.arch == name {
				chosen, found = append(chosen, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no packages are made for %q here", name)
		}
	}
	return chosen, nil
}

// commitTime is SOURCE_DATE_EPOCH, or the commit's.
func commitTime(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("git knows no commit: set SOURCE_DATE_EPOCH: %w", err)
		}
		text = strings.TrimSpace(string(out))
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, "==> dist: "+format+"\n", args...) }

// command runs a program with additions to the environment.
func command(ctx context.Context, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}
