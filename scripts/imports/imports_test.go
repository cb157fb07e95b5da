package imports

import (
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/berthvm/berth/"

// rule says what the packages under a folder may import of this module, and
// whether they may import anything beyond the standard library.
type rule struct {
	under   string   // folder, relative to the module's root
	allow   []string // folders; its own is always allowed
	stdOnly bool     // nothing from other modules, except those in also
	also    []string // other modules allowed in spite of stdOnly
	why     string
}

// The first rule whose folder holds a package decides. Dependencies point
// inward: commands know everything, contracts know nothing.
var rules = []rule{
	{under: "cmd/berth-init", allow: []string{"guest/boot", "guest/heap", "guest/keeper", "guest/wire", "guest/monitor", "guest/container/reaper"}, stdOnly: true,
		also: []string{"golang.org/x/sys"}, why: "PID 1 stays small: it must never fail, and is read from disk at every boot"},
	{under: "cmd/berth-exec", allow: []string{"guest/container"}, stdOnly: true,
		also: []string{"golang.org/x/sys"}, why: "package init of a container's first process is most of its start time"},
	{under: "cmd/berth-git", allow: []string{"guest/build/git/call"}, stdOnly: true,
		also: []string{"golang.org/x/sys"}, why: "a messenger; it runs several times for a repository"},
	{under: "cmd", allow: []string{"vm", "guest", "host", "images"}, why: "commands wire everything together"},
	{under: "host/e2e", allow: []string{"vm", "host", "images", "guest/wire"}, why: "tests of the whole"},
	{under: "host", allow: []string{"vm", "guest/wire", "images"}, why: "the host meets the guest on the wire alone"},
	{under: "vm/internal", allow: []string{"vm", "guest/wire"}, why: "shared by the drivers; the streams over a serial port are made by the guest's code"},
	{under: "vm/qemu", allow: []string{"vm", "guest/wire"}, why: "drivers know the contract and what drivers share; this one tells the guest how its streams go"},
	{under: "vm/vz", allow: []string{"vm", "guest/wire"}, why: "drivers know the contract and what drivers share; this one frames its streams as the guest does"},
	{under: "vm/hyperv", allow: []string{"vm", "guest/wire"}, why: "drivers know the contract and what drivers share; this one tells the guest which devices it lacks"},
	{under: "vm/vmtest", allow: []string{"vm"}, why: "the contract suite knows the contract"},
	{under: "vm/vmfake", allow: []string{"vm"}, why: "a driver like the others"},
	{under: "vm", stdOnly: true, why: "the contract must not pull anything into those who read it"},
	{under: "guest/wire", stdOnly: true, why: "shared by the host and PID 1"},
	{under: "guest/keeper", allow: []string{"guest/wire"}, stdOnly: true, also: []string{"golang.org/x/sys"}, why: "runs in PID 1"},
	{under: "guest/monitor", stdOnly: true, why: "runs in PID 1"},
	{under: "guest/heap", stdOnly: true, why: "runs in PID 1"},
	{under: "guest/binfmt", stdOnly: true, also: []string{"golang.org/x/sys"}, why: "PID 1 registers Rosetta with it"},
	{under: "guest/boot", allow: []string{"guest/wire", "guest/heap", "guest/keeper", "guest/monitor", "guest/binfmt"}, stdOnly: true, also: []string{"golang.org/x/sys"}, why: "runs in PID 1"},
	{under: "guest/dockerapi", allow: []string{"guest/engine"}, why: "HTTP is a thin skin over the engine"},
	{under: "guest/engine", allow: []string{"guest/container", "guest/image", "guest/network", "guest/volume", "guest/build", "guest/keeper", "guest/wire", "guest/binfmt", "guest/ident"},
		why: "the engine owns containers over time and uses the parts"},
	{under: "guest/build", allow: []string{"guest/container", "guest/image", "guest/network", "guest/engine/runspec", "guest/binfmt"},
		why: "builds run in containers on the store, to the same specification as the engine's"},
	{under: "guest/container", why: "knows OCI specs only"},
	{under: "guest/image", allow: []string{"guest/hostdial", "guest/container/seccomp", "guest/ident"}, why: "knows registries and the store only"},
	{under: "guest", allow: []string{"guest"}, why: "the guest knows nothing of host or vm"},
	{under: "images", allow: []string{"guest/wire"}, why: "boot artifacts are values"},
	{under: "scripts", allow: []string{"cmd", "guest", "host", "images", "vm"}, why: "tools of the build"},
}

// onlyCommandsPickDrivers: no package but a command or a test of the whole may name a driver.
var drivers = []string{"vm/qemu", "vm/vz", "vm/hyperv"}

// TestImports parses every Go file of the module, whatever its GOOS or tags, so
// that a file this machine never builds is held to the rules too.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(strings.TrimPrefix(name, root), string(filepath.Separator)))
		if d.IsDir() {
			if rel == "bin" || d.Name() == "testdata" || (rel != "" && strings.HasPrefix(d.Name(), ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") {
			files++
			checkFile(t, name, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 3 {
		t.Fatalf("only %d Go files found: the test looks in the wrong place", files)
	}
}

func checkFile(t *testing.T, name, rel string) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		t.Errorf("%s: %v", rel, err)
		return
	}
	for _, spec := range f.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		if p == "C" && !hasTag(name, "cgo") {
			t.Errorf("%s imports C without the build tag cgo: everything else builds with CGO_ENABLED=0", rel)
		}
		if why := refuse(path.Dir(rel), p, strings.HasSuffix(rel, "_test.go")); why != "" {
			t.Errorf("%s imports %s: %s", rel, p, why)
		}
	}
}

// refuse says why package dir may not import p, or "" when it may. Tests may use
// the module's test packages and other modules, but must keep the direction.
func refuse(dir, p string, test bool) string {
	var r rule
	for _, r = range rules {
		if within(dir, r.under) {
			break
		}
	}
	if !within(dir, r.under) {
		return "the folder " + dir + " has no rule: the top level is fixed"
	}
	own, ours := strings.CutPrefix(p, module)
	if !ours {
		first, _, _ := strings.Cut(p, "/")
		if !r.stdOnly || test || !strings.Contains(first, ".") {
			return ""
		}
		for _, m := range r.also {
			if p == m || strings.HasPrefix(p, m+"/") {
				return ""
			}
		}
		return r.why + " (standard library only)"
	}
	for _, d := range drivers {
		if within(own, d) && !within(dir, d) && !within(dir, "cmd") && !test {
			return "only a command picks a driver"
		}
	}
	if within(own, r.under) || test && (within(own, "vm") || within(own, "images")) {
		return ""
	}
	for _, a := range r.allow {
		if within(own, a) {
			return ""
		}
	}
	return r.why
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// hasTag reports whether the file's build constraint cannot hold without tag.
func hasTag(name, tag string) bool {
	src, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(src)) {
		if strings.HasPrefix(line, "package ") {
			return false
		}
		if !constraint.IsGoBuild(line) {
			continue
		}
		x, err := constraint.Parse(strings.TrimSpace(line))
		return err == nil && !x.Eval(func(t string) bool { return t != tag })
	}
	return false
}

// TestRules shows that the rules can refuse.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		dir, imp string
		refused  bool
	}{
		{"vm", "golang.org/x/sys/unix", true},
		{"vm", "net", false},
		{"host/daemon", module + "vm/qemu", true},
		{"host/daemon", module + "guest/wire", false},
		{"host/daemon", module + "guest/engine", true},
		{"guest/engine", module + "vm", true},
		{"guest/container", module + "guest/engine", true},
		{"guest/dockerapi", module + "guest/engine", false},
		{"cmd/berth", module + "vm/qemu", false},
		{"cmd/berth-init", "github.com/spf13/cobra", true},
		{"cmd/berth-init", "golang.org/x/sys/unix", false},
		{"util", "fmt", true},
	} {
		if why := refuse(c.dir, c.imp, false); (why != "") != c.refused {
			t.Errorf("%s importing %s: refused %q, want refused=%v", c.dir, c.imp, why, c.refused)
		}
	}
}
