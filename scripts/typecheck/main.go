// Command typecheck type-checks packages for darwin with cgo on any host: no Mac,
// no SDK and no C compiler is needed, as what comes from C is taken on trust
// (go/types' FakeImportC). It checks the named packages whole, and of all that
// they import the declarations. That finds what a Go compiler would find; it does
// not compile, link or run anything.
//
//	typecheck [-arch arm64,amd64] [-overlay FILE] PACKAGE...
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
	arches := flag.String("arch", "arm64,amd64", "the architectures, `A,B`")
	overlay := flag.String("overlay", "", "JSON `file` that replaces files, as go build's")
	flag.Parse()
	failed := false
	for arch := range strings.SplitSeq(*arches, ",") {
		faults, n, err := check(arch, *overlay, flag.Args())
		if err != nil {
			fmt.Fprintf(os.Stderr, "typecheck darwin/%s: %v\n", arch, err)
			os.Exit(1)
		}
		for _, f := range faults {
			fmt.Fprintf(os.Stderr, "darwin/%s: %v\n", arch, f)
			failed = true
		}
		fmt.Printf("darwin/%s: %d packages, %d errors\n", arch, n, len(faults))
	}
	if failed {
		os.Exit(1)
	}
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

// check type-checks packages for one architecture and returns what is wrong, and
// how many packages it has looked at.
func check(arch, overlay string, patterns []string) (faults []error, packages int, err error) {
	args := []string{"list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,DepOnly,Error"}
	replaced := map[string]string{}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
		if replaced, err = readOverlay(overlay); err != nil {
			return nil, 0, err
		}
	}
	cmd := exec.Command("go", append(append(args, "--"), patterns...)...)
	cmd.Env = append(os.Environ(), "GOOS=darwin", "GOARCH="+arch, "CGO_ENABLED=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("go list: %w", err)
	}
	c := &checker{fset: token.NewFileSet(), sizes: types.SizesFor("gc", arch), replaced: replaced, done: map[string]*types.Package{"unsafe": types.Unsafe}}
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
		FakeImportC:      true,
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
