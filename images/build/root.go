package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/berthvm/berth/images/kernel"
)

// root is the staging directory of the root file system. Owners and times are
// set when it is packed, modes here.
type root struct {
	dir  string
	tree string // the unpacked packages
}

func (r root) fill(ctx context.Context, s settings, release string, modules *kernel.Tree, programs map[string]string) error {
	for _, dir := range directories {
		if err := r.mkdir(dir); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if err := r.write(name, 0o644, []byte(texts[name])); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		if err := r.link(name, links[name]); err != nil {
			return err
		}
	}
	release = strings.TrimSpace(release)
	return errors.Join(
		r.write("etc/os-release", 0o644, []byte(osRelease(s.version))),
		r.busybox(ctx, s),
		r.programs(s.arch, "", tools),
		r.git(s.arch),
		r.copy(filepath.Join(r.tree, emulator(s.arch)), emulator(s.arch), 0o755),
		r.certificates(),
		r.modules(release, modules),
		r.copy(programs["berth-init"], "sbin/berth-init", 0o755), // for docker's --init; PID 1 runs from the initramfs
		r.copy(programs["berth-guest"], "usr/bin/berth-guest", 0o755),
		r.copy(programs["berth-exec"], "usr/lib/berth/berth-exec", 0o755),
		r.copy(programs["berth-git"], "usr/bin/git", 0o755),
		r.containerImages(s),
	)
}

func osRelease(version string) string {
	return fmt.Sprintf("NAME=\"Berth\"\nID=berth\nID_LIKE=debian\nVERSION_ID=\"%s\"\nPRETTY_NAME=\"Berth %s\"\nHOME_URL=\"https://github.com/berthvm/berth\"\n", version, version)
}

func (r root) mkdir(name string) error {
	path := filepath.Join(r.dir, name)
	for dir := path; dir != r.dir; dir = filepath.Dir(dir) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

func (r root) write(name string, perm os.FileMode, data []byte) error {
	path := filepath.Join(r.dir, name)
	if err := r.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, perm); err != nil {
		return err
	}
	return os.Chmod(path, perm)
}

func (r root) link(name, target string) error {
	if err := r.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	return os.Symlink(target, filepath.Join(r.dir, name))
}

func (r root) copy(source, name string, perm os.FileMode) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return r.write(name, perm, data)
}

// busybox installs it with a link for each applet. The list comes from the
// program itself, or, for another architecture, from that of the build machine,
// which is built from the same source.
func (r root) busybox(ctx context.Context, s settings) error {
	own := filepath.Join(r.tree, "bin", "busybox")
	if err := r.copy(own, "bin/busybox", 0o755); err != nil {
		return err
	}
	lister := own
	if s.arch != runtime.GOARCH {
		var err error
		if lister, err = exec.LookPath("busybox"); err != nil {
			return errors.New("busybox is missing: install the package busybox-static")
		}
	}
	list, err := exec.CommandContext(ctx, lister, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", lister, err)
	}
	for _, applet := range strings.Fields(string(list)) {
		taken := slices.ContainsFunc([]string{"bin/", "sbin/"}, func(dir string) bool {
			_, err := os.Lstat(filepath.Join(r.dir, dir+applet))
			return err == nil
		})
		if taken {
			continue
		}
		if err := r.link("bin/"+applet, "busybox"); err != nil {
			return err
		}
	}
	return nil
}

// programs copies programs and the libraries they need into the tree at prefix,
// which is "" for the root itself or that of another root within it.
func (r root) programs(arch, prefix string, names []string) error {
	done := map[string]bool{}
	var need func(name string) error
	need = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		file, err := elf.Open(filepath.Join(r.tree, name))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := r.share(filepath.Join(r.tree, name), name, prefix); err != nil {
			return err
		}
		if loader := interpreter(file); loader != "" {
			real, err := filepath.EvalSymlinks(filepath.Join(r.tree, loader))
			if err != nil {
				return err
			}
			if err := r.share(real, loader, prefix); err != nil {
				return err
			}
		}
		libraries, err := file.ImportedLibraries()
		if err != nil {
			return err
		}
		for _, library := range libraries {
			path, err := r.library(arch, library)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := need(path); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range names {
		if err := need(name); err != nil {
			return err
		}
	}
	return nil
}

// share copies a program to name below prefix. What the root itself has at name is
// the same there: it is linked, and takes no space.
func (r root) share(source, name, prefix string) error {
	own := filepath.Join(r.dir, name)
	if _, err := os.Lstat(own); prefix == "" || err != nil {
		return r.copy(source, filepath.Join(prefix, name), 0o755)
	}
	if err := r.mkdir(filepath.Join(prefix, filepath.Dir(name))); err != nil {
		return err
	}
	if err := os.Link(own, filepath.Join(r.dir, prefix, name)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// git makes the root file system of the containers in which git runs.
func (r root) git(arch string) error {
	for _, dir := range gitDirectories {
		if err := r.mkdir(filepath.Join(gitRoot, dir)); err != nil {
			return err
		}
	}
	if err := r.programs(arch, gitRoot, gitPrograms); err != nil {
		return err
	}
	for _, name := range gitScripts {
		if err := r.copy(filepath.Join(r.tree, name), filepath.Join(gitRoot, name), 0o755); err != nil {
			return err
		}
	}
	if err := r.share("", "bin/busybox", gitRoot); err != nil {
		return err
	}
	for _, applet := range gitApplets {
		if err := r.link(filepath.Join(gitRoot, "bin", applet), "busybox"); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(gitLinks)) {
		if err := r.link(filepath.Join(gitRoot, name), gitLinks[name]); err != nil {
			return err
		}
	}
	if err := r.write(filepath.Join(gitRoot, "usr/bin/gettext.sh"), 0o755, []byte(gitText)); err != nil {
		return err
	}
	for _, name := range gitTexts {
		if err := r.write(filepath.Join(gitRoot, name), 0o644, []byte(texts[name])); err != nil {
			return err
		}
	}
	return nil
}

// interpreter returns the path of the dynamic loader, relative to the root.
func interpreter(file *elf.File) string {
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			path := make([]byte, p.Filesz)
			if _, err := p.ReadAt(path, 0); err == nil {
				return strings.TrimPrefix(strings.TrimRight(string(path), "\x00"), "/")
			}
		}
	}
	return ""
}

func (r root) library(arch, name string) (string, error) {
	for _, dir := range libraryDirs(arch) {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(filepath.Join(r.tree, path)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no package has the library %s", name)
}

// certificates joins the CA certificates into one bundle.
func (r root) certificates() error {
	files, err := filepath.Glob(filepath.Join(r.tree, "usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("the package ca-certificates has no certificates")
	}
	var bundle bytes.Buffer
	for _, file := range files { // Glob sorts
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimSpace(data))
		bundle.WriteByte('\n')
	}
	return r.write("usr/share/berth/ca-certificates.crt", 0o644, bundle.Bytes())
}

// modules installs all modules in one directory with the indexes of busybox's
// modprobe, and "core", which lists those to load at boot: "group file" lines
// in the order they must load.
func (r root) modules(release string, tree *kernel.Tree) error {
	dir := "lib/modules/" + release
	var core strings.Builder
	loaded := map[string]bool{}
	for _, g := range earlyModules {
		if _, err := newModules(tree, g, loaded); err != nil {
			return err
		}
	}
	names := slices.Sorted(maps.Keys(loaded))
	for _, g := range coreModules {
		list, err := newModules(tree, g, loaded)
		if err != nil {
			return err
		}
		for _, m := range list {
			fmt.Fprintf(&core, "%s %s.ko\n", g.name, m.Name)
			names = append(names, m.Name)
		}
	}
	for _, name := range moreModules { // which of them a kernel has differs by architecture
		if _, err := tree.Resolve(name); err == nil {
			names = append(names, name)
		}
	}
	for _, prefix := range moreDirs {
		names = append(names, tree.Names(prefix)...)
	}
	if err := r.mkdir(dir); err != nil {
		return err
	}
	if err := tree.Install(filepath.Join(r.dir, dir), names...); err != nil {
		return err
	}
	return r.write(dir+"/core", 0o644, []byte(core.String()))
}
