// Command typecheck type-checks packages for other platforms than this one. It
// checks the named packages whole, and of all that they import the declarations
// alone. That finds what a Go compiler would find in the named packages, in a
// fraction of the time that compiling their imports takes; it does not compile,
// link or run anything.
//
// With cgo, no SDK and no C compiler is needed, as what comes from C is taken on
// trust (go/types' FakeImportC).
//
//	typecheck [-platforms OS/ARCH,...] [-cgo] [-overlay FILE] PACKAGE...
//
// An overlay replaces files, as go build's does.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	platforms := flag.String("platforms", "darwin/arm64,darwin/amd64", "the platforms, `OS/ARCH,...`")
	cgo := flag.Bool("cgo", false, "check the files that are built with cgo")
	overlay := flag.String("overlay", "", "JSON `file` that replaces files, as go build's")
	flag.Parse()
	failed := false
	for name := range strings.SplitSeq(*platforms, ",") {
		goos, arch, _ := strings.Cut(name, "/")
		faults, n, err := check(platform{goos, arch, *cgo}, *overlay, flag.Args())
		if err != nil {
			fmt.Fprintf(os.Stderr, "typecheck %s: %v\n", name, err)
			os.Exit(1)
		}
		for _, f := range faults {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, f)
			failed = true
		}
		fmt.Printf("%s: %d packages, %d errors\n", name, n, len(faults))
	}
	if failed {
		os.Exit(1)
	}
}

// platform is what is checked for.
type platform struct {
	os, arch string
	cgo      bool
}

func (p platform) env() []string {
	cgo := "0"
	if p.cgo {
		cgo = "1"
	}
	return append(os.Environ(), "GOOS="+p.os, "GOARCH="+p.arch, "CGO_ENABLED="+cgo)
}

// listed is what is read of go list's output.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	CgoFiles   []string
	ImportMap  map[string]string
	DepOnly    bool
	Error      *struct{ Err string }
}

// check type-checks packages for one platform and returns what is wrong, and how
// many packages it has looked at.
func check(on platform, overlay string, patterns []string) (faults []error, packages int, err error) {
	args := []string{"list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,DepOnly,Error"}
	replaced := map[string]string{}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
		if replaced, err = readOverlay(overlay); err != nil {
			return nil, 0, err
		}
	}
	cmd := exec.Command("go", append(append(args, "--"), patterns...)...)
	cmd.Env = on.env()
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("go list: %w", err)
	}
	c := &checker{cgo: on.cgo, fset: token.NewFileSet(), sizes: types.SizesFor("gc", on.arch), replaced: replaced, done: map[string]*types.Package{"unsafe": types.Unsafe}}
	named := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; packages++ { // what is imported comes first
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, 0, fmt.Errorf("go list: %w", err)
		}
		if !p.DepOnly {
			named++
		}
		c.check(p)
	}
	if named == 0 {
		return nil, 0, errors.New("no package is named")
	}
	return c.faults, packages, nil
}

func readOverlay(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var o struct{ Replace map[string]string }
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return o.Replace, nil
}

type checker struct {
	cgo      bool
	fset     *token.FileSet
	sizes    types.Sizes
	replaced map[string]string
	done     map[string]*types.Package // by import path, all that was checked
	faults   []error
}

// check checks a package whose imports have been checked.
func (c *checker) check(p listed) {
	if p.ImportPath == "unsafe" {
		return
	}
	if p.Error != nil {
		c.faults = append(c.faults, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err))
	}
	var files []*ast.File
	for _, name := range append(p.GoFiles, p.CgoFiles...) {
		path := filepath.Join(p.Dir, name)
		source := path
		if r, ok := c.replaced[path]; ok {
			source = r
		}
		text, err := os.ReadFile(source)
		if err != nil {
			c.faults = append(c.faults, err)
			continue
		}
		f, err := parser.ParseFile(c.fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			c.faults = append(c.faults, err)
		}
		if f != nil {
			files = append(files, f)
		}
	}
	cfg := types.Config{
		FakeImportC:      c.cgo,
		IgnoreFuncBodies: p.DepOnly,
		Sizes:            c.sizes,
		Importer:         importer{c, p.ImportMap},
		Error:            func(err error) { c.faults = append(c.faults, err) },
	}
	c.done[p.ImportPath], _ = cfg.Check(p.ImportPath, c.fset, files, nil)
}

// importer finds what a package imports among what was checked.
type importer struct {
	checker *checker
	renamed map[string]string // go list's ImportMap: vendored paths of the standard library
}

// Import implements types.Importer.
func (i importer) Import(path string) (*types.Package, error) {
	if r, ok := i.renamed[path]; ok {
		path = r
	}
	if p := i.checker.done[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s was not listed", path)
}
