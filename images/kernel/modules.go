package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

// Module is one loadable module of a Tree.
type Module struct {
	Name    string   // with underscores, as the kernel spells it
	Path    string   // below the tree's root, without the compression's suffix: "kernel/fs/ext4/ext4.ko"
	Depends []string // names of modules that must be loaded before, nearest first
	Aliases []string // what the kernel asks for when it wants this module
	ELF     []byte   // uncompressed, without signature and type information
}

// Tree is the /lib/modules/VERSION directory of a kernel package.
// Its methods are safe for concurrent use.
type Tree struct {
	root    string
	paths   map[string]string // name → path below root, with suffix
	builtin map[string]bool

	mu    sync.Mutex
	cache map[string]*Module
}

// OpenTree indexes the modules below root.
func OpenTree(root string) (*Tree, error) {
	t := &Tree{root: root, paths: map[string]string{}, builtin: map[string]bool{}, cache: map[string]*Module{}}
	list, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	for _, line := range strings.Fields(string(list)) {
		t.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name := moduleName(p); name != "" {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			t.paths[name] = filepath.ToSlash(rel)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return t, nil
}

// moduleName returns the name of the module in file p, or "" if it is none.
func moduleName(p string) string {
	base := path.Base(filepath.ToSlash(p))
	base = strings.TrimSuffix(base, ".xz")
	name, ok := strings.CutSuffix(base, ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

// extraDepends names what modules need at run time and do not say in "depends":
// they ask the crypto API for an algorithm by name.
var extraDepends = map[string][]string{
	"ext4":      {"crc32c_generic"},
	"jbd2":      {"crc32c_generic"},
	"btrfs":     {"crc32c_generic"},
	"libcrc32c": {"crc32c_generic"},
}

// Resolve returns the named modules and all they depend on, each after what it
// needs: loading them in this order succeeds. Names of built-in modules are
// skipped.
func (t *Tree) Resolve(names ...string) ([]*Module, error) {
	var order []*Module
	state := map[string]int{} // 1 being visited, 2 done
	var visit func(name string) error
	visit = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if state[name] == 2 || t.builtin[name] {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("kernel: module %s depends on itself", name)
		}
		state[name] = 1
		m, err := t.Module(name)
		if err != nil {
			return err
		}
		for _, dep := range m.Depends {
			if err := visit(dep); err != nil {
				return fmt.Errorf("%w (needed by %s)", err, name)
			}
		}
		state[name] = 2
		order = append(order, m)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Module reads one module. The value is shared: it must not be changed.
func (t *Tree) Module(name string) (*Module, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.cache[name]; m != nil {
		return m, nil
	}
	rel, ok := t.paths[name]
	if !ok {
		return nil, fmt.Errorf("kernel: no module %s", name)
	}
	raw, err := readModule(filepath.Join(t.root, rel))
	if err != nil {
		return nil, fmt.Errorf("kernel: module %s: %w", name, err)
	}
	slim, err := Slim(raw)
	if err != nil {
		return nil, fmt.Errorf("kernel: module %s: %w", name, err)
	}
	info, err := modinfo(slim)
	if err != nil {
		return nil, fmt.Errorf("kernel: module %s: %w", name, err)
	}
	m := &Module{Name: name, Path: strings.TrimSuffix(rel, ".xz"), ELF: slim, Aliases: info["alias"]}
	for _, list := range info["depends"] {
		for _, dep := range strings.Split(list, ",") {
			if dep != "" {
				m.Depends = append(m.Depends, strings.ReplaceAll(dep, "-", "_"))
			}
		}
	}
	m.Depends = append(m.Depends, extraDepends[name]...)
	t.cache[name] = m
	return m, nil
}

// Names returns the names of all modules whose path starts with prefix, sorted.
func (t *Tree) Names(prefix string) []string {
	var names []string
	for name, p := range t.paths {
		if strings.HasPrefix(p, prefix) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// readModule reads a module's file and undoes its compression with xz(1).
func readModule(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	out, err := exec.Command("xz", "-dc", "--", file).Output()
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("xz is missing: install the package xz-utils")
		}
		return nil, fmt.Errorf("xz: %w", err)
	}
	return out, nil
}

// modinfo parses a module's .modinfo section.
func modinfo(image []byte) (map[string][]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	data, err := io.ReadAll(section.Open())
	if err != nil {
		return nil, err
	}
	info := map[string][]string{}
	for _, entry := range bytes.Split(data, []byte{0}) {
		if key, value, ok := strings.Cut(string(entry), "="); ok {
			info[key] = append(info[key], value)
		}
	}
	return info, nil
}

// Install writes the named modules, and all they depend on, into the directory
// dir, which exists, with the indexes that busybox's modprobe reads: it can then
// serve as /lib/modules/VERSION.
func (t *Tree) Install(dir string, names ...string) error {
	all, err := t.Resolve(names...)
	if err != nil {
		return err
	}
	var depends, aliases strings.Builder
	for _, m := range all {
		chain, err := t.Resolve(m.Name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&depends, "%s.ko:", m.Name)
		for i := len(chain) - 2; i >= 0; i-- {
			fmt.Fprintf(&depends, " %s.ko", chain[i].Name)
		}
		depends.WriteByte('\n')
		for _, alias := range m.Aliases {
			fmt.Fprintf(&aliases, "alias %s %s\n", alias, m.Name)
		}
		if err := writeFile(filepath.Join(dir, m.Name+".ko"), m.ELF); err != nil {
			return err
		}
	}
	return errors.Join(
		writeFile(filepath.Join(dir, "modules.dep"), []byte(depends.String())),
		writeFile(filepath.Join(dir, "modules.alias"), []byte(aliases.String())),
		writeFile(filepath.Join(dir, "modules.symbols"), nil))
}

// writeFile makes a file that all may read, whatever the umask.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
