package git

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/build/git/call"
)

// FuzzRead: whatever the arguments and the environment, git sees no directory or file
// but those that an option names by its clean and absolute path, and never all.
func FuzzRead(f *testing.F) {
	f.Add("-c\na=b\n--git-dir\n/s/1/fs\nfetch\norigin", "SSH_AUTH_SOCK=/tmp/a/sock\nGIT_SSH_COMMAND=ssh -o UserKnownHostsFile=/tmp/kh")
	f.Add("--work-tree\n/s/2/fs\n--git-dir\n/s/2/fs/.git\nremote\nadd\norigin\nfile:///s/1", "")
	f.Add("remote\nadd\norigin\nfile:///", "SSH_AUTH_SOCK=")
	f.Add("--upload-pack=x\nfetch", "A")
	f.Fuzz(func(t *testing.T, args, env string) {
		c := call.Call{Args: strings.Split(args, "\n"), Env: strings.Split(env, "\n")}
		p, err := read(c)
		if err != nil {
			return
		}
		for _, path := range append(p.directories(p.source()), p.socket, p.knownHosts) {
			if path == "" {
				continue
			}
			if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || !strings.Contains(args+env, path) {
				t.Errorf("%q with %q sees %q", c.Args, c.Env, path)
			}
		}
		if strings.HasPrefix(p.command[0], "-") {
			t.Errorf("the command of %q is %q", c.Args, p.command)
		}
	})
}
