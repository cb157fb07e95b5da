package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Share is a folder of the host that the configuration lends to the machine,
// written as its path, or as {path: PATH, read-only: true, native: true}.
type Share struct {
	Path     string `yaml:"path" json:"path"` // absolute, or below the user's home: "~/src"
	ReadOnly bool   `yaml:"read-only,omitempty" json:"readOnly,omitempty"`
	// Native leaves the folder to the hypervisor where that can serve folders by
	// virtiofs: Apple's. It is the hypervisor that then decides what links in the
	// folder lead to, and no owner or mode is remembered for containers.
	Native bool `yaml:"native,omitempty" json:"native,omitempty"`

	optional bool // a default: one that is not there is left out
}

// Shares is the list of them.
type Shares []Share

// defaultShares are the user's home and the folder for temporary files.
func defaultShares() Shares {
	var s Shares
	if home, err := os.UserHomeDir(); err == nil && filepath.Clean(home) != string(filepath.Separator) {
		s = append(s, Share{Path: home, optional: true})
	}
	return append(s, Share{Path: os.TempDir(), optional: true})
}

// UnmarshalYAML reads Shares. "~" means the home, though YAML would call it null.
func (s *Shares) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: shares is a list of folders", n.Line)
	}
	*s = Shares{}
	for _, item := range n.Content {
		var share Share
		switch item.Kind {
		case yaml.ScalarNode:
			share.Path = item.Value
		case yaml.MappingNode:
			for i := 0; i+1 < len(item.Content); i += 2 {
				key, value := item.Content[i], item.Content[i+1]
				switch {
				case key.Value == "path" && value.Kind == yaml.ScalarNode:
					share.Path = value.Value
				case key.Value == "read-only" && value.Decode(&share.ReadOnly) == nil:
				case key.Value == "native" && value.Decode(&share.Native) == nil:
				default:
					return fmt.Errorf("line %d: a share has a path and may be read-only: true or native: true, not %q", key.Line, key.Value)
				}
			}
		default:
			return fmt.Errorf("line %d: a share is a path, or {path: PATH, read-only: true}", item.Line)
		}
		if _, err := share.absolute(); err != nil {
			return fmt.Errorf("line %d: %w", item.Line, err)
		}
		*s = append(*s, share)
	}
	return nil
}

// MarshalYAML writes a Share as the user does.
func (s Share) MarshalYAML() (any, error) {
	if !s.ReadOnly && !s.Native {
		return s.Path, nil
	}
	type plain Share
	return plain(s), nil
}

// absolute is the clean path.
func (s Share) absolute() (string, error) {
	path := s.Path
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("share %q: %w", s.Path, err)
		}
		path = home + rest
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("share %q is neither an absolute path nor below ~/", s.Path)
	}
	return filepath.Clean(path), nil
}

// Folder is a folder that is to be shared.
type Folder struct {
	Path     string   // without symbolic links
	Names    []string // all the host's names for it that are known: Path, and what the user wrote
	ReadOnly bool
	Native   bool // see Share
}

// Folders resolves the configuration's shares. A folder inside another is left
// out, unless it may be written to and the other not, or has a name that does not
// lead there through the other, or is native and the other not. A folder may hold
// Berth's own files, which stay invisible, unless it is native; none may lie among
// them.
func (m Machine) Folders(c Config) ([]Folder, error) {
	var all []Folder
	for _, s := range c.Shares {
		f, err := s.resolve()
		switch {
		case s.optional && errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("shares: %w: see %s", err, m.ConfigFile)
		case m.isPrivate(f.Path):
			return nil, fmt.Errorf("shares: %s holds Berth's own files, which no machine may see: see %s", s.Path, m.ConfigFile)
		case s.Native && m.holdsPrivate(f.Path):
			return nil, fmt.Errorf("shares: %s holds Berth's own files, which native: true cannot hide from the machine: leave it out, or share the folders in it: see %s", s.Path, m.ConfigFile)
		}
		all = append(all, f)
	}
	// The outer ones first, and of one twice the one that may be written to.
	slices.SortStableFunc(all, func(a, b Folder) int {
		switch {
		case a.Path == b.Path && a.ReadOnly != b.ReadOnly && b.ReadOnly:
			return -1
		case a.Path == b.Path && a.ReadOnly != b.ReadOnly:
			return 1
		}
		return len(a.Path) - len(b.Path)
	})
	var kept []Folder
	for _, f := range all {
		if err := keep(&kept, f); err != nil {
			return nil, fmt.Errorf("shares: %w: see %s", err, m.ConfigFile)
		}
	}
	return kept, nil
}

// covers says whether all of the inner folder's names lead there through f.
func (f Folder) covers(inner Folder) bool {
	return !slices.ContainsFunc(inner.Names, func(name string) bool {
		return !slices.ContainsFunc(f.Names, func(outer string) bool { return inside(name, outer) })
	})
}

// keep adds f to what is shared already.
func keep(kept *[]Folder, f Folder) error {
	for i := len(*kept) - 1; i >= 0; i-- { // the innermost first
		outer := &(*kept)[i]
		if !inside(f.Path, outer.Path) {
			continue
		}
		switch {
		case f.ReadOnly && !outer.ReadOnly:
			return fmt.Errorf("%s is to be read-only but lies in %s, which may be written to", f.Path, outer.Path)
		case !f.ReadOnly && outer.ReadOnly:
			continue
		case f.Path == outer.Path:
			outer.Native = outer.Native || f.Native
			for _, name := range f.Names {
				if !slices.Contains(outer.Names, name) {
					outer.Names = append(outer.Names, name)
				}
			}
			return nil
		case outer.covers(f) && f.Native == outer.Native:
			return nil
		}
	}
	*kept = append(*kept, f)
	return nil
}

// resolve finds the folder itself.
func (s Share) resolve() (Folder, error) {
	path, err := s.absolute()
	if err != nil {
		return Folder{}, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Folder{}, fmt.Errorf("cannot share %s: %w", s.Path, err)
	}
	if st, err := os.Stat(real); err != nil {
		return Folder{}, fmt.Errorf("cannot share %s: %w", s.Path, err)
	} else if !st.IsDir() {
		return Folder{}, fmt.Errorf("cannot share %s: it is not a folder", s.Path)
	}
	f := Folder{Path: real, Names: []string{real}, ReadOnly: s.ReadOnly, Native: s.Native}
	if path != real {
		f.Names = append(f.Names, path)
	}
	return f, nil
}

// inside says whether path is dir or lies in it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// Private lists the directories that hold Berth's own files, this machine's and
// the others'. They must never be seen by a guest, which could change its own
// configuration there, or take the keys.
func (m Machine) Private() []string {
	return []string{filepath.Dir(m.ConfigFile), filepath.Dir(m.DataDir), filepath.Dir(m.StateDir), m.CacheDir, filepath.Dir(m.SocketDir)}
}

// MakePrivate makes those that are missing, so that the guest cannot.
func (m Machine) MakePrivate() error {
	if err := m.MakeSocketDir(); err != nil {
		return err
	}
	for _, dir := range m.Private() {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot make Berth's own folders: %w", err)
		}
	}
	return nil
}

func (m Machine) isPrivate(path string) bool {
	for _, dir := range m.Private() {
		if real, err := filepath.EvalSymlinks(dir); err == nil && inside(path, real) {
			return true
		}
	}
	return false
}

// holdsPrivate says whether any of Berth's own folders lies in the folder real, or
// will.
func (m Machine) holdsPrivate(real string) bool {
	for _, dir := range m.Private() {
		for rest := ""; ; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
			if found, err := filepath.EvalSymlinks(dir); err == nil {
				if inside(filepath.Join(found, rest), real) {
					return true
				}
				break
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return false
}
