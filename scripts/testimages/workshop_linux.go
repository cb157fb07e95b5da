package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// workshop is where images are made.
type workshop struct{ module, dir string }

func (w workshop) layout() layout { return layout{filepath.Join(w.dir, "oci")} }

// image returns an image, made anew if its recipe has changed.
func (w workshop) image(ctx context.Context, name string) (image, error) {
	r, err := find(name)
	if err != nil {
		return image{}, err
	}
	program, err := w.program(ctx, r)
	if err != nil {
		return image{}, err
	}
	key := r.key(program)
	if found, err := w.layout().find(name, key); err == nil && (r.from != "" || w.hasBase()) {
		return found, nil
	}
	if os.Geteuid() != 0 {
		return image{}, errors.New("must be built by root: run \"sudo go run ./scripts/testimages\" once")
	}
	if err := exec.CommandContext(ctx, filepath.Join(w.module, "scripts", "deps"), "debootstrap").Run(); err != nil {
		return image{}, fmt.Errorf("cannot install debootstrap: %w", err)
	}
	fmt.Fprintf(os.Stderr, "testimages: building %s\n", name)
	var below image
	if r.from != "" && r.from != "scratch" {
		if below, err = w.image(ctx, r.from); err != nil {
			return image{}, fmt.Errorf("below it, %s: %w", r.from, err)
		}
	}
	root, err := os.MkdirTemp(w.dir, "root-")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(root)
	if err := os.Chmod(root, 0o755); err != nil { // packages' users look into it
		return image{}, err
	}
	layer, err := w.build(ctx, r, root, program)
	if err != nil {
		return image{}, err
	}
	defer os.Remove(layer)
	return w.layout().add(r, key, below, layer)
}

// base keeps the root of Debian's own packages, on which others are made.
func (w workshop) base() string { return filepath.Join(w.dir, "base") }

func (w workshop) hasBase() bool {
	_, err := os.Stat(w.base())
	return err == nil
}

// key names a recipe with all that goes into it.
func (r recipe) key(program string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%#v\n%s\n", r, runtime.GOARCH)
	if r.from != "" && r.from != "scratch" {
		below, err := find(r.from)
		fmt.Fprintln(h, below.key(""), err)
	}
	if r.goroot {
		fmt.Fprintln(h, runtime.Version())
	}
	text, _ := os.ReadFile(program)
	h.Write(text)
	fs.WalkDir(files, "files/"+r.name, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			text, _ := files.ReadFile(path)
			fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		}
		return nil
	})
	return fmt.Sprintf("%x", h.Sum(nil))[:32]
}

// program builds the recipe's program, if it has one.
func (w workshop) program(ctx context.Context, r recipe) (string, error) {
	if r.program == "" {
		return "", nil
	}
	out := filepath.Join(w.dir, r.name+".program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./"+r.program)
	cmd.Dir = w.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, text)
	}
	return out, nil
}

// build makes the image's root and returns a file with the layer that makes it
// from the root below.
func (w workshop) build(ctx context.Context, r recipe, root, program string) (layer string, err error) {
	var before tree
	switch r.from {
	case "":
		err = bootstrap(ctx, root)
	case "scratch":
	default:
		if err = command(ctx, "cp", "-a", w.base()+"/.", root); err == nil {
			before, err = look(root)
		}
	}
	if err != nil {
		return "", err
	}
	if len(r.packages) > 0 {
		if err := install(ctx, root, r.packages); err != nil {
			return "", err
		}
	}
	if r.goroot {
		if err := copyGo(ctx, root); err != nil {
			return "", err
		}
	}
	if program != "" {
		if err := command(ctx, "install", "-m", "755", program, filepath.Join(root, r.name)); err != nil {
			return "", err
		}
	}
	if err := overlay(root, r.name); err != nil {
		return "", err
	}
	for _, pattern := range r.remove {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		for _, name := range found {
			if err := os.RemoveAll(name); err != nil {
				return "", err
			}
		}
	}
	if r.from == "" {
		if err := os.RemoveAll(w.base()); err != nil {
			return "", err
		}
		if err := command(ctx, "cp", "-a", root, w.base()); err != nil {
			return "", err
		}
	}
	return writeLayer(w.dir, root, before)
}

// overlay puts the recipe's files into the root. Those in a bin are programs.
func overlay(root, name string) error {
	top := "files/" + name
	if _, err := fs.Stat(files, top); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fs.WalkDir(files, top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(root, strings.TrimPrefix(path, top))
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if filepath.Base(filepath.Dir(target)) == "bin" {
			mode = 0o755
		}
		if err := os.WriteFile(target, text, mode); err != nil {
			return err
		}
		return os.Chmod(target, mode)
	})
}

// copyGo puts this host's toolchain at /usr/local/go, without what building a
// program does not need.
func copyGo(ctx context.Context, root string) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	from, to := strings.TrimSpace(string(out)), filepath.Join(root, "usr/local/go")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"VERSION", "go.env", "bin", "pkg", "src"} {
		if err := command(ctx, "cp", "-rL", filepath.Join(from, name), to); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "go"), 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "testdata":
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, "_test.go"):
			return os.Remove(path)
		}
		return nil
	})
}

// command runs a program and, when it fails, tells what it said.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, lastLines(text))
	}
	return nil
}

func lastLines(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}
