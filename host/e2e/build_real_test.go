//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// realBuild is a project as developers have them, in testdata/builds/NAME. It needs
// packages of the world's, which come through the host's network.
type realBuild struct {
	name   string
	images []string // what it stands on
	// settings tell the project's package manager, in its own file, where this host's
	// get their packages from. offline, if there is one, has it get none: all that it
	// needs is in a cache mount that the first client's build has filled.
	settings func(testing.TB) string
	offline  string
	// A line of a file is changed, and then only the steps that begin so run again.
	file, was, becomes string
	rerun              []string
	port, path         string // where its image serves
	want               string // what the page holds after the change
	// check looks at what a build printed whose steps ran after the change; warm says
	// that another client's build has filled the mounts with the same before.
	check func(t testing.TB, progress string, warm bool)
}

var realBuilds = []realBuild{
	{
		name: "service", images: []string{"golang"},
		settings: func(t testing.TB) string {
			return "GOPROXY=" + hostSays(t, "go", "env", "GOPROXY") + "\nGONOSUMDB=*\n"
		},
		offline: "GOPROXY=off\n",
		file:    "greet/greet.go", was: `"!\n"`, becomes: `"?\n"`, rerun: []string{"--mount=type=cache,target=/go/pkg/mod     --mount=type=cache"},
		port: "8080", path: "/greet/eo/mondo", want: "saluton, mondo?\n",
		check: func(t testing.TB, progress string, warm bool) {
			// go names what it compiles: the two packages that changed, and nothing of
			// what the cache mount has.
			want := 2
			if warm {
				want = 0
			}
			if n := strings.Count(progress, "example.test/greeter"); n != want || strings.Contains(progress, "net/http") {
				t.Errorf("after a change of one package, go compiled %d of its own, not %d\n%s", n, want, progress)
			}
		},
	},
	{
		name: "debian", images: []string{"debian"},
		settings: func(t testing.TB) string {
			var proxies strings.Builder
			for line := range strings.Lines(hostSays(t, "apt-config", "dump")) {
				if strings.HasPrefix(line, "Acquire::http") {
					proxies.WriteString(line)
				}
			}
			return proxies.String() + "\n"
		},
		file: "page/page.txt", was: "page", becomes: "changed page", rerun: []string{"lighttpd -tt"},
		port: "8080", path: "/page.txt", want: "a changed page of Debian's\n",
	},
	{
		name: "front", images: []string{"node", "nginx"},
		settings: func(t testing.TB) string {
			if _, err := exec.LookPath("npm"); err != nil {
				return npmrc
			}
			return "registry=" + hostSays(t, "npm", "config", "get", "registry") + "\n" + npmrc
		},
		offline: "offline=true\n" + npmrc,
		file:    "src/greeting.js", was: "hello", becomes: "good day", rerun: []string{"npm run build"},
		port: "80", path: "/app.js", want: "good day from the front",
	},
}

const npmrc = "cafile=/etc/ssl/certs/ca-certificates.crt\nupdate-notifier=false\n"

// hostSays is what a program of the host's prints.
func hostSays(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return strings.TrimSpace(string(out))
}

// TestRealBuilds: real projects are built by the built-in client and by stock docker,
// pushed, removed, pulled back and run; after a change of one line, what does not
// depend on it is not done again.
func TestRealBuilds(t *testing.T) {
	needFull(t)
	h := machine(t)
	for _, p := range realBuilds {
		t.Run(p.name, func(t *testing.T) {
			registry := testImages(t, p.images...)
			for i, b := range h.builders(t)[:2] {
				t.Run(b.name, func(t *testing.T) {
					c := b.cli
					c.patience = long
					p.live(t, c, registry, i > 0)
				})
			}
			h.berth().ok(t, "builder", "prune", "-a", "-f")
		})
	}
}

// live takes the project through its life with one client.
func (p realBuild) live(t *testing.T, c cli, registry string, warm bool) {
	dir := t.TempDir()
	project := filepath.Join(dir, p.name)
	if err := os.CopyFS(project, os.DirFS(filepath.Join("testdata", "builds", p.name))); err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(dir, "settings")
	text := p.offline
	if !warm || text == "" {
		text = p.settings(t)
	}
	writeFile(t, settings, text)
	image := registry + "/e2e-" + p.name + ":" + c.name
	c.env = append(slices.Clone(c.env), "BUILDKIT_PROGRESS=plain")
	build := func() (progress string, ran, cached []string) {
		t.Helper()
		r := c.exec("build", "-t", image, "--build-arg", "REGISTRY="+registry, "--secret", "id=settings,src="+settings,
			"--secret", "id=authorities,src=/etc/ssl/certs/ca-certificates.crt", project)
		if r.code != 0 {
			t.Fatal(r)
		}
		t.Logf("built in %v", r.took)
		ran, cached = ranSteps(r.err)
		return r.err, ran, cached
	}

	_, all, cached := build()
	if len(all) == 0 || len(cached) != 0 {
		t.Errorf("the first build ran %q and had %q", all, cached)
	}
	file := filepath.Join(project, p.file)
	old := mustRead(t, file)
	if strings.Count(old, p.was) != 1 {
		t.Fatalf("%s has no %q to change", file, p.was)
	}
	writeFile(t, file, strings.Replace(old, p.was, p.becomes, 1))
	progress, ran, cached := build()
	if !slices.EqualFunc(ran, p.rerun, strings.HasPrefix) || len(ran)+len(cached) != len(all) {
		t.Errorf("after a change of %s, the build ran %q and had %q", p.file, ran, cached)
	}
	if p.check != nil {
		p.check(t, progress, warm)
	}

	id := c.ok(t, "inspect", "-f", "{{.Id}}", image)
	c.ok(t, "push", image)
	c.ok(t, "rmi", image)
	c.ok(t, "builder", "prune", "-a", "-f", "--filter", "type=regular") // what mounts have stays
	c.fails(t, "no such image", "run", "--rm", "--pull", "never", image)
	c.ok(t, "pull", image)
	if got := c.ok(t, "inspect", "-f", "{{.Id}}", image); got != id {
		t.Errorf("pushed %s, pulled back %s", id, got)
	}
	name := c.ok(t, "run", "-d", "-p", "127.0.0.1::"+p.port, image)
	defer func() {
		if t.Failed() {
			t.Log(c.exec("logs", name))
		}
		c.exec("rm", "-f", name)
		c.exec("rmi", image)
	}()
	if got := get(t, "http://"+c.ok(t, "port", name, p.port)+p.path); !strings.Contains(got, p.want) {
		t.Errorf("the image's server answers %q, want %q", tail(got, 5), p.want)
	}
}
