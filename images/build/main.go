// Build makes the guest image: kernel, initramfs and root file system, from
// Debian packages and this module's guest programs. It runs on Debian without
// root and writes the same bytes for the same packages, sources and toolchain.
//
//	go run ./images/build -o bin/image
//	go run ./images/build -update    # rewrite images/debian.lock with the newest versions
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/images/debian"
)

type settings struct {
	out      string
	arch     string // GOARCH
	version  string
	module   string // this module's root directory
	cache    string
	engine   string // a program to use in place of cmd/berth-guest
	update   bool
	started  time.Time
	packages []debian.Package
}

func main() {
	var s settings
	s.started = time.Now()
	flag.StringVar(&s.out, "o", "bin/image", "write the image to this `directory`")
	flag.StringVar(&s.arch, "arch", runtime.GOARCH, "build for this `GOARCH`: amd64 or arm64")
	flag.StringVar(&s.version, "version", "dev", "the guest programs' `version`")
	flag.StringVar(&s.cache, "cache", "", "keep downloads in this `directory` (default .cache/image below the module)")
	flag.StringVar(&s.engine, "engine", "", "use this static `program` in place of cmd/berth-guest, for tests")
	flag.BoolVar(&s.update, "update", false, "take the newest packages, rewrite images/debian.lock, and build nothing")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "images/build:", err)
		os.Exit(1)
	}
}

func note(format string, a ...any) { fmt.Fprintf(os.Stderr, "  "+format+"\n", a...) }

func run(ctx context.Context, s settings) error {
	if flag.NArg() > 0 {
		return errors.New("no arguments are expected: see -help")
	}
	if s.arch != "amd64" && s.arch != "arm64" {
		return fmt.Errorf("no guest image for %q: want amd64 or arm64", s.arch)
	}
	var err error
	if s.module, err = moduleRoot(); err != nil {
		return err
	}
	if s.cache == "" {
		s.cache = filepath.Join(s.module, ".cache", "image")
	}
	if s.cache, err = filepath.Abs(s.cache); err != nil {
		return err
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return err
	}
	lock := filepath.Join(s.module, "images", "debian.lock")
	pins, err := readLock(lock)
	if err != nil {
		return err
	}
	if s.update {
		return update(ctx, s, lock, pins)
	}
	return build(ctx, s, pins)
}

func readLock(path string) ([]debian.Package, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	pins, err := debian.ParseLock(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pins, nil
}

// update pins the newest packages of s.arch and keeps the other architectures'.
func update(ctx context.Context, s settings, lock string, pins []debian.Package) error {
	f := debian.Fetcher{Arch: s.arch, Cache: s.cache, Note: note}
	fetched, _, err := f.Fetch(ctx, packageNames(s.arch), nil)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Arch != s.arch {
			fetched = append(fetched, p)
		}
	}
	var text strings.Builder
	if err := debian.FormatLock(&text, fetched); err != nil {
		return err
	}
	return os.WriteFile(lock, []byte(text.String()), 0o644)
}

// build makes the image in a directory beside s.out and then puts it in place.
func build(ctx context.Context, s settings, pins []debian.Package) error {
	f := debian.Fetcher{Arch: s.arch, Cache: s.cache, Note: note}
	packages, paths, err := f.Fetch(ctx, packageNames(s.arch), pins)
	if err != nil {
		return err
	}
	s.packages = packages
	tree, err := unpack(ctx, s, paths)
	if err != nil {
		return err
	}
	parent := filepath.Dir(s.out)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(parent, "."+filepath.Base(s.out)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	out := filepath.Join(work, "image")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	manifest, err := assemble(ctx, s, tree, work, out)
	if err != nil {
		return err
	}
	if err := replace(out, s.out, filepath.Join(work, "old")); err != nil {
		return err
	}
	report(s, manifest)
	return nil
}

// replace puts the directory from at to; what was there goes to old.
func replace(from, to, old string) error {
	if err := os.Rename(to, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(from, to)
}

func report(s settings, m images.Manifest) {
	var total int64
	for _, f := range m.Files {
		note("%-12s %6.1f MB", f.Name, float64(f.Size)/1e6)
		total += f.Size
	}
	note("%-12s %6.1f MB in %s, kernel %s, %s", "total", float64(total)/1e6, s.out, m.Kernel, time.Since(s.started).Round(100*time.Millisecond))
}

// moduleRoot returns the directory of the go.mod above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", errors.New("no go.mod above the working directory: run this inside Berth's source")
	}
}
