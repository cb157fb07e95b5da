package git

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthvm/berth/guest/build/git/call"
)

// plan is what a call of BuildKit's needs.
type plan struct {
	workTree, gitDir string   // "" where the call names none
	command          []string // with its arguments
	socket           string   // of an ssh agent, or ""
	knownHosts       string   // a file, or ""
}

// networked are the commands that may reach other machines.
var networked = []string{"ls-remote", "fetch", "submodule"}

// read takes a call apart. Options that BuildKit does not use are refused: what
// they make git do is not known here.
func read(c call.Call) (plan, error) {
	var p plan
	rest := c.Args
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		if len(rest) < 2 {
			return p, fmt.Errorf("option %s has no value", rest[0])
		}
		switch rest[0] {
		case "-c":
		case "--work-tree":
			p.workTree = rest[1]
		case "--git-dir":
			p.gitDir = rest[1]
		default:
			return p, fmt.Errorf("unexpected option %s", rest[0])
		}
		rest = rest[2:]
	}
	if len(rest) == 0 {
		return p, fmt.Errorf("no command")
	}
	p.command = rest
	for _, kv := range c.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "SSH_AUTH_SOCK":
			p.socket = value
		case "GIT_SSH_COMMAND":
			_, p.knownHosts, _ = strings.Cut(value, "-o UserKnownHostsFile=")
		}
	}
	for _, path := range []string{p.workTree, p.gitDir, p.socket, p.knownHosts} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/") {
			return p, fmt.Errorf("invalid path %q", path)
		}
	}
	return p, nil
}

func (p plan) network() bool { return slices.Contains(networked, p.command[0]) }

// source is the directory that the call makes p.gitDir's origin, if it does.
func (p plan) source() string {
	if len(p.command) != 4 || !slices.Equal(p.command[:3], []string{"remote", "add", "origin"}) {
		return ""
	}
	dir, ok := strings.CutPrefix(p.command[3], "file://")
	if !ok || !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
		return ""
	}
	return dir
}

// directories are those of the machine that the command works on, outermost first.
func (p plan) directories(source string) []string {
	var out []string
	for _, dir := range []string{p.workTree, p.gitDir, source} {
		inside := func(outer string) bool { return dir == outer || strings.HasPrefix(dir, outer+"/") }
		if dir != "" && !slices.ContainsFunc(out, inside) {
			out = append(out, dir)
		}
	}
	return out
}
