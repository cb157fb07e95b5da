// Package debian fetches packages with apt, without root, at the versions that a
// lock file pins. It names no mirror: apt's own configuration does, and apt
// verifies what it fetches by the archive's signature.
//
// A pin that the archive no longer has, as happens to kernels within weeks, is
// replaced by the newest version, with a note: a build must not fail because
// Debian published a fix.
package debian

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Package is one binary package at one version.
type Package struct {
	Arch    string // Debian's name: "amd64", "arm64"; what was asked for, also for packages of "all"
	Name    string
	Version string
	SHA256  string // of the .deb, lower-case hex
}

// ParseLock reads a lock file: one package per line, its four fields separated
// by spaces; empty lines and those that start with # are skipped.
func ParseLock(r io.Reader) ([]Package, error) {
	var packages []Package
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("line %d: want architecture, name, version and SHA-256", n)
		}
		if sum, err := hex.DecodeString(f[3]); err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("line %d: %q is no SHA-256", n, f[3])
		}
		for _, field := range f[:3] {
			if strings.HasPrefix(field, "-") || strings.ContainsAny(field, "/\\=") {
				return nil, fmt.Errorf("line %d: invalid field %q", n, field)
			}
		}
		packages = append(packages, Package{f[0], f[1], f[2], strings.ToLower(f[3])})
	}
	return packages, lines.Err()
}

// FormatLock writes packages in ParseLock's form, sorted.
func FormatLock(w io.Writer, packages []Package) error {
	sorted := slices.Clone(packages)
	slices.SortFunc(sorted, func(a, b Package) int {
		return strings.Compare(a.Arch+" "+a.Name, b.Arch+" "+b.Name)
	})
	var text strings.Builder
	text.WriteString("# The Debian packages that the guest image is made of. Written by\n# go run ./images/build -update\n")
	for _, p := range sorted {
		fmt.Fprintf(&text, "%s %s %s %s\n", p.Arch, p.Name, p.Version, p.SHA256)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// Fetcher downloads packages of one architecture into a cache. It is for one
// goroutine; the cache may be shared.
type Fetcher struct {
	Arch  string                        // Debian's name of it
	Cache string                        // directory, which exists
	Note  func(format string, a ...any) // told about pins that were replaced, and slow steps

	options []string // apt's, once its own lists are in use
}

// Fetch returns the paths of the named packages' .deb files, at the pinned
// versions where the archive still has them, and the packages they are.
// A name may be a metapackage with one dependency of the same prefix, as the
// kernel's is; it stands for that dependency.
func (f *Fetcher) Fetch(ctx context.Context, names []string, pins []Package) ([]Package, []string, error) {
	packages := make([]Package, len(names))
	paths := make([]string, len(names))
	var open []int
	for i, name := range names {
		if pin, ok := f.pinned(name, pins); ok && f.cached(pin) {
			packages[i], paths[i] = pin, f.path(pin)
			continue
		}
		open = append(open, i)
	}
	for _, i := range open {
		p, err := f.choose(ctx, names[i], pins)
		if err != nil {
			return nil, nil, err
		}
		packages[i], paths[i] = p, f.path(p)
	}
	return packages, paths, f.download(ctx, packages)
}

// pinned finds the pin for name, which for a metapackage bears a longer name.
func (f *Fetcher) pinned(name string, pins []Package) (Package, bool) {
	for _, p := range pins {
		if p.Arch == f.Arch && (p.Name == name || isMeta(name) && kernelOf(name, p.Name)) {
			return p, true
		}
	}
	return Package{}, false
}

// isMeta tells the one kind of metapackage that is used: linux-image-6.12-amd64.
func isMeta(name string) bool { return strings.HasPrefix(name, "linux-image-") }

// kernelOf reports whether name is a kernel of the series that meta follows:
// linux-image-6.12.117+deb12-amd64 of linux-image-6.12-amd64.
func kernelOf(meta, name string) bool {
	cut := strings.LastIndexByte(meta, '-')
	return strings.HasPrefix(name, meta[:cut]+".") && strings.HasSuffix(name, meta[cut:]) && strings.Count(name, "-") == strings.Count(meta, "-")
}

func (f *Fetcher) path(p Package) string {
	return filepath.Join(f.Cache, fmt.Sprintf("%s_%s_%s.deb", p.Name, p.SHA256[:16], p.Arch))
}

func (f *Fetcher) cached(p Package) bool {
	sum, err := hashFile(f.path(p))
	return err == nil && sum == p.SHA256
}

// choose returns the pinned version of name, or else the newest. If apt's lists
// have neither, private ones are fetched and asked.
func (f *Fetcher) choose(ctx context.Context, name string, pins []Package) (Package, error) {
	pin, pinned := f.pinned(name, pins)
	for {
		if pinned {
			if known, err := f.known(ctx, pin.Name); err == nil && slices.Contains(known, pin) {
				return pin, nil
			}
		}
		newest, err := f.candidate(ctx, name)
		if err == nil {
			f.noteDifference(pin, newest, pins)
			return newest, nil
		}
		if f.options != nil {
			return Package{}, err
		}
		if err := f.update(ctx); err != nil {
			return Package{}, err
		}
	}
}

// noteDifference tells what is taken instead of a pin.
func (f *Fetcher) noteDifference(pin, newest Package, pins []Package) {
	switch {
	case pins == nil: // whoever wants the newest need not be told
	case pin.Name == "":
		f.Note("%s is not pinned for %s; taking %s", newest.Name, f.Arch, newest.Version)
	case newest.Name != pin.Name:
		f.Note("%s is gone; taking %s %s", pin.Name, newest.Name, newest.Version)
	case newest.Version != pin.Version:
		f.Note("%s %s is gone; taking %s", pin.Name, pin.Version, newest.Version)
	default:
		f.Note("%s %s has another SHA-256 than its pin: %s, not %s", pin.Name, pin.Version, newest.SHA256, pin.SHA256)
	}
}

// candidate resolves a metapackage and returns the version apt would install.
func (f *Fetcher) candidate(ctx context.Context, name string) (Package, error) {
	if isMeta(name) {
		out, err := f.apt(ctx, "apt-cache", "depends", "--important", name+":"+f.Arch)
		if err != nil {
			return Package{}, err
		}
		target := ""
		for _, word := range strings.Fields(string(out)) {
			if word, _, _ = strings.Cut(word, ":"); kernelOf(name, word) {
				target = word
			}
		}
		if target == "" {
			return Package{}, fmt.Errorf("apt knows no package %s for %s: Debian 12 (bookworm) with its security archive has it", name, f.Arch)
		}
		name = target
	}
	known, err := f.known(ctx, name)
	if err != nil {
		return Package{}, err
	}
	out, err := f.apt(ctx, "apt-cache", "policy", name+":"+f.Arch)
	if err != nil {
		return Package{}, err
	}
	for _, line := range strings.Split(string(out), "\n") {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok {
			for _, p := range known {
				if p.Version == version {
					return p, nil
				}
			}
		}
	}
	return Package{}, fmt.Errorf("apt has no version of %s for %s to install", name, f.Arch)
}

// known lists the versions of name that apt's lists hold.
func (f *Fetcher) known(ctx context.Context, name string) ([]Package, error) {
	out, err := f.apt(ctx, "apt-cache", "show", name+":"+f.Arch)
	if err != nil {
		return nil, err
	}
	var known []Package
	for _, stanza := range strings.Split(string(out), "\n\n") {
		p := Package{Arch: f.Arch}
		for _, line := range strings.Split(stanza, "\n") {
			key, value, _ := strings.Cut(line, ": ")
			switch key {
			case "Package":
				p.Name = value
			case "Version":
				p.Version = value
			case "SHA256":
				p.SHA256 = value
			}
		}
		if p.Name == name && p.Version != "" && len(p.SHA256) == 2*sha256.Size {
			known = append(known, p)
		}
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("apt knows no package %s for %s", name, f.Arch)
	}
	return known, nil
}

// download fetches what is not cached and verifies it. Lists that are older
// than the archive make it fail; then private ones are fetched and it tries again.
func (f *Fetcher) download(ctx context.Context, packages []Package) error {
	var missing []Package
	for _, p := range packages {
		if !f.cached(p) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err := f.downloadAll(ctx, missing)
	if err != nil && f.options == nil {
		if err := f.update(ctx); err != nil {
			return err
		}
		err = f.downloadAll(ctx, missing)
	}
	return err
}

func (f *Fetcher) downloadAll(ctx context.Context, packages []Package) error {
	dir, err := os.MkdirTemp(f.Cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f.Note("downloading %d packages", len(packages))
	args := []string{"-q", "-o", "APT::Sandbox::User=", "download"}
	for _, p := range packages {
		args = append(args, p.Name+":"+f.Arch+"="+p.Version)
	}
	if _, err := f.aptIn(ctx, dir, "apt-get", args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	sums := map[string]string{}
	for _, file := range files {
		sum, err := hashFile(file)
		if err != nil {
			return err
		}
		sums[sum] = file
	}
	for _, p := range packages {
		file, ok := sums[p.SHA256]
		if !ok {
			return fmt.Errorf("apt-get downloaded no %s %s with the SHA-256 %s", p.Name, p.Version, p.SHA256)
		}
		if err := os.Rename(file, f.path(p)); err != nil {
			return err
		}
	}
	return nil
}

// update makes lists of our own below the cache, which needs no root, from the
// sources and keys that apt is configured with.
func (f *Fetcher) update(ctx context.Context) error {
	root := filepath.Join(f.Cache, "apt-"+f.Arch)
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	status := filepath.Join(root, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	f.options = []string{
		"-o", "Dir::State::lists=" + filepath.Join(root, "lists"),
		"-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache=" + filepath.Join(root, "cache"),
		"-o", "APT::Architecture=" + f.Arch,
		"-o", "APT::Architectures=" + f.Arch,
		"-o", "APT::Sandbox::User=",
	}
	f.Note("fetching apt's lists for %s", f.Arch)
	_, err := f.apt(ctx, "apt-get", "-q", "update")
	return err
}

func (f *Fetcher) apt(ctx context.Context, program string, args ...string) ([]byte, error) {
	return f.aptIn(ctx, "", program, args...)
}

func (f *Fetcher) aptIn(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, append(slices.Clone(f.options), args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s is missing: the guest image is built on Debian", program)
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return out, nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func hashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// Unpack extracts the files of .deb packages below dir, which it makes, with
// dpkg-deb.
func Unpack(ctx context.Context, dir string, paths []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, path := range paths {
		out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", path, dir).CombinedOutput()
		if err != nil {
			return fmt.Errorf("unpack %s: %w: %s", filepath.Base(path), err, lastLine(string(out)))
		}
	}
	return nil
}
