package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/images/cpio"
	"github.com/berthvm/berth/images/debian"
	"github.com/berthvm/berth/images/kernel"
)

// rootUUID is the erofs image's: one for all, so that its bytes repeat.
const rootUUID = "6f2a4ce4-2a7c-4a52-9b1c-6a1d4d5f0b01"

// unpack extracts the packages into the cache, once for each set of them.
func unpack(ctx context.Context, s settings, paths []string) (string, error) {
	hash := sha256.New()
	for _, p := range s.packages {
		fmt.Fprintln(hash, p.Arch, p.Name, p.SHA256)
	}
	dir := filepath.Join(s.cache, "unpacked-"+hex.EncodeToString(hash.Sum(nil))[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	note("unpacking %d packages", len(paths))
	tmp, err := os.MkdirTemp(s.cache, "unpacking-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := debian.Unpack(ctx, filepath.Join(tmp, "tree"), paths); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, "tree"), dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// assemble writes the image's files to out, working in work.
func assemble(ctx context.Context, s settings, tree, work, out string) (images.Manifest, error) {
	var none images.Manifest
	release, bzImage, err := findKernel(tree)
	if err != nil {
		return none, err
	}
	modules, err := kernel.OpenTree(filepath.Join(tree, "lib", "modules", release))
	if err != nil {
		return none, err
	}
	programs, err := buildPrograms(ctx, s, work)
	if err != nil {
		return none, err
	}
	m := images.Manifest{
		Format: images.Format, Version: s.version, Protocol: wire.Protocol, Arch: s.arch, Kernel: release, Cmdline: cmdline(s.arch),
	}
	for _, p := range s.packages {
		m.Packages = append(m.Packages, images.Package{Name: p.Name, Version: p.Version, SHA256: p.SHA256})
	}
	kernelName := map[string]string{"amd64": "vmlinux", "arm64": "Image"}[s.arch]
	type step struct {
		role images.Role
		name string
		make func(path string) error
	}
	steps := []step{
		{images.RoleKernel, kernelName, func(p string) error { return writeKernel(s.arch, bzImage, p) }},
		{images.RoleInitrd, "initramfs", func(p string) error { return writeInitramfs(modules, programs["berth-init"], p) }},
		{images.RoleRoot, "root.erofs", func(p string) error { return writeRoot(ctx, s, tree, work, release, modules, programs, p) }},
	}
	if s.arch == "amd64" {
		steps = append(steps, step{images.RoleBzImage, "bzImage", func(p string) error { return copyFile(bzImage, p) }})
	}
	for _, step := range steps {
		note("making %s", step.name)
		path := filepath.Join(out, step.name)
		if err := step.make(path); err != nil {
			return none, fmt.Errorf("%s: %w", step.name, err)
		}
		file, err := describe(path, step.role)
		if err != nil {
			return none, err
		}
		m.Files = append(m.Files, file)
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return none, err
	}
	return m, os.WriteFile(filepath.Join(out, images.ManifestName), append(text, '\n'), 0o644)
}

func describe(path string, role images.Role) (images.File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return images.File{}, err
	}
	sum := sha256.Sum256(data)
	return images.File{Name: filepath.Base(path), Role: role, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}, nil
}

func findKernel(tree string) (release, path string, err error) {
	found, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return "", "", fmt.Errorf("want one kernel in %s, found %d", tree, len(found))
	}
	return strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), found[0], nil
}

// writeKernel writes the form that boots fastest: amd64's vmlinux needs no
// decompressing; arm64's vmlinuz is a raw Image already.
func writeKernel(arch, source, path string) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if arch == "amd64" {
		if data, err = kernel.Vmlinux(data); err != nil {
			return err
		}
	}
	return os.WriteFile(path, data, 0o644)
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// writeInitramfs writes PID 1 and the modules that it needs before it has a
// root, grouped in directories and numbered in the order they must load.
func writeInitramfs(tree *kernel.Tree, initProgram, path string) error {
	program, err := os.ReadFile(initProgram)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	err = errors.Join(
		w.Dir("dev"), w.Dir("proc"), w.Dir("sys"), w.Dir("root"), w.Dir("modules"),
		w.Add(cpio.Header{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1}, nil),
		w.File("init", 0o755, program))
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	for _, g := range earlyModules {
		list, err := newModules(tree, g, loaded)
		if err != nil {
			return err
		}
		if err := w.Dir("modules/" + g.name); err != nil {
			return err
		}
		for i, m := range list {
			if err := w.File(fmt.Sprintf("modules/%s/%02d-%s.ko", g.name, i, m.Name), 0o644, m.ELF); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, archive.Bytes(), 0o644)
}

// newModules resolves a group, less what earlier groups load.
func newModules(tree *kernel.Tree, g group, loaded map[string]bool) ([]*kernel.Module, error) {
	names := g.modules
	if slices.Contains(optionalGroups, g.name) {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { _, err := tree.Resolve(name); return err != nil })
	}
	all, err := tree.Resolve(names...)
	if err != nil {
		return nil, err
	}
	var list []*kernel.Module
	for _, m := range all {
		if !loaded[m.Name] {
			loaded[m.Name] = true
			list = append(list, m)
		}
	}
	return list, nil
}

// writeRoot stages the root's files below work and packs them as erofs.
func writeRoot(ctx context.Context, s settings, tree, work, release string, modules *kernel.Tree, programs map[string]string, path string) error {
	r := root{dir: filepath.Join(work, "root"), tree: tree}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return err
	}
	if err := r.fill(ctx, s, release, modules, programs); err != nil {
		return err
	}
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		return errors.New("mkfs.erofs is missing: install the package erofs-utils")
	}
	cmd := exec.CommandContext(ctx, mkfs, "--quiet", "-x-1", "-T0", "-U"+rootUUID, "--all-root", path, r.dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}
