//go:build linux

package e2e

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// buildxes are berth's buildx and, in the long suite, the stock one as a plugin of
// Debian's docker, and its builder, which finds the machine by its docker context alone.
func (h *home) buildxes(t testing.TB) []cli {
	t.Helper()
	if os.Getenv("BERTH_FULL") != "1" {
		return []cli{h.berth()}
	}
	stock := h.docker()
	stock.name = "docker-buildx"
	config := filepath.Join(h.dir, "docker-buildx")
	for link, to := range map[string]string{
		"cli-plugins/docker-buildx": filepath.Join(root, "bin", "tools", "docker-buildx"),
		"contexts":                  filepath.Join(h.dir, "docker", "contexts"),
	} {
		link = filepath.Join(config, link)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"aliases": {"builder": "buildx"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	stock.env = append(stock.env, "DOCKER_CONFIG="+config)
	return []cli{h.berth(), stock}
}

const bakeFile = `variable "REGISTRY" {}
variable "WORD" { default = "baked" }
group "default" { targets = ["web", "tools"] }
target "common" {
  args = { WORD = WORD }
  labels = { "of" = "bake" }
}
target "web" {
  inherits = ["common"]
  target = "web"
  tags = ["${REGISTRY}bake-web:1", "${REGISTRY}bake-web:2"]
}
target "tools" {
  name = "tool-${letter}"
  matrix = { letter = ["a", "b"] }
  inherits = ["common"]
  args = { WORD = upper(letter) }
  contexts = { given = "target:web" }
  target = "tool"
  tags = ["${REGISTRY}bake-tool:${letter}"]
}
target "broken" { dockerfile-inline = "FROM hello\nRUN exit 5" }
`

const bakeDockerfile = `FROM hello AS base
ARG WORD
RUN echo $WORD > /word
FROM base AS web
RUN echo web > /kind
CMD ["cat", "/word", "/kind"]
FROM base AS tool
COPY --from=given /kind /given
CMD ["cat", "/word", "/given"]
`

// bake is what bake --print says.
type bake struct {
	Group  map[string]struct{ Targets []string }
	Target map[string]struct {
		Args   map[string]string
		Tags   []string
		Output []struct{ Type string }
	}
}

func (c cli) bake(t testing.TB, args ...string) (b bake) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.ok(t, append([]string{"buildx", "bake", "--print"}, args...)...)), &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBake: a file of targets is built as it says, into the store and to a registry.
func TestBake(t *testing.T) {
	h := machine(t)
	registry := suite.registry.image("")
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			c.dir = buildContext(t, map[string]string{
				"docker-bake.hcl":           bakeFile,
				"docker-bake.override.json": `{"target": {"common": {"args": {"MORE": "1"}}}}`,
				"Dockerfile":                bakeDockerfile,
			})
			c.env = append(c.env, "REGISTRY="+registry)
			b := c.bake(t)
			if got := slices.Sorted(maps.Keys(b.Target)); !slices.Equal(got, []string{"tool-a", "tool-b", "web"}) {
				t.Errorf("the default group is %q", got)
			}
			if got := b.Target["tool-b"].Args; !maps.Equal(got, map[string]string{"WORD": "B", "MORE": "1"}) {
				t.Errorf("the arguments of tool-b are %q", got)
			}
			if b = c.bake(t, "web", "--push", "--set", "web.args.WORD=set"); b.Target["web"].Args["WORD"] != "set" || len(b.Target) != 1 || len(b.Target["web"].Output) == 0 {
				t.Errorf("with --set and --push: %+v", b)
			}
			with := c
			with.env = append(with.env, "WORD=from the environment")
			if got := with.bake(t, "web").Target["web"].Args["WORD"]; got != "from the environment" {
				t.Errorf("the variable is %q", got)
			}

			c.ok(t, "buildx", "bake", "--load")
			for image, want := range map[string]string{"bake-web:2": "baked\nweb", "bake-tool:a": "A\nweb", "bake-tool:b": "B\nweb"} {
				if got := c.ok(t, "run", "--rm", registry+image); got != want {
					t.Errorf("%s prints %q, want %q", image, got, want)
				}
			}
			if got := c.ok(t, "inspect", "-f", "{{.Config.Labels.of}}", registry+"bake-web:1"); got != "bake" {
				t.Errorf("the label is %q", got)
			}
			c.ok(t, "buildx", "bake", "--push", "--set", "*.args.WORD=pushed", "web")
			c.ok(t, "rmi", "-f", registry+"bake-web:1", registry+"bake-web:2")
			for _, tag := range []string{"1", "2"} {
				if got := c.ok(t, "run", "--rm", registry+"bake-web:"+tag); got != "pushed\nweb" {
					t.Errorf("what was pushed as %s prints %q", tag, got)
				}
			}
			c.fails(t, "none", "buildx", "bake", "none")
			// What it says to type is what was typed.
			name, _, _ := strings.Cut(c.name, "-")
			c.fails(t, name+" buildx bake --allow=fs.read=/", "buildx", "bake", "--set", "*.context=/", "web")
			c.fails(t, "exit code: 5", "buildx", "bake", "web", "broken")
		})
	}
}

// TestImagetools: images of a registry are looked at and put together without
// being pulled.
func TestImagetools(t *testing.T) {
	h := machine(t)
	ref := func(tag string) string { return suite.registry.image("e2e-imagetools:" + tag) }
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\nARG TARGETARCH\nENV ARCH=$TARGETARCH\n"})
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			for _, arch := range []string{"amd64", "arm64"} {
				c.ok(t, "buildx", "build", "-q", "--push", "--provenance=false", "--platform", "linux/"+arch, "-t", ref(arch), dir)
			}
			c.ok(t, "buildx", "imagetools", "create", "-t", ref("both"), "--annotation", "index:of=both", ref("amd64"), ref("arm64"))
			var index struct {
				MediaType   string
				Annotations map[string]string
				Manifests   []struct {
					Digest   string
					Platform struct{ Architecture string }
				}
			}
			if err := json.Unmarshal([]byte(c.ok(t, "buildx", "imagetools", "inspect", "--raw", ref("both"))), &index); err != nil {
				t.Fatal(err)
			}
			if index.MediaType != "application/vnd.oci.image.index.v1+json" || len(index.Manifests) != 2 || index.Annotations["of"] != "both" ||
				index.Manifests[1].Platform.Architecture != "arm64" {
				t.Errorf("the index is %+v", index)
			}
			text := c.ok(t, "buildx", "imagetools", "inspect", ref("both"))
			for _, m := range index.Manifests {
				if !strings.Contains(text, ref("both")+"@"+m.Digest) {
					t.Errorf("inspect does not show %s:\n%s", m.Digest, text)
				}
			}
			if got := c.ok(t, "buildx", "imagetools", "inspect", "--format", "{{.Image.Config.Env}}", ref("arm64")); !strings.Contains(got, "ARCH=arm64") {
				t.Errorf("the image's environment is %s", got)
			}
			if got := c.ok(t, "buildx", "imagetools", "create", "--dry-run", "-t", ref("none"), ref("amd64")); !strings.Contains(got, "schemaVersion") {
				t.Errorf("a dry run prints %s", got)
			}
			c.fails(t, "not found", "buildx", "imagetools", "inspect", ref("none"))
		})
	}
}

// TestBuildHistory: what was built can be looked at afterwards.
func TestBuildHistory(t *testing.T) {
	h := machine(t)
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nARG WORD\nRUN echo said $WORD\nARG BAD\nRUN test -z \"$BAD\"\n"})
			metadata := filepath.Join(t.TempDir(), "metadata")
			build := func(args ...string) (ref string, r result) {
				r = c.exec(append(append([]string{"buildx", "build", "--no-cache", "--metadata-file", metadata, "--build-arg", "WORD=" + c.name}, args...), dir)...)
				var m map[string]any
				if data, err := os.ReadFile(metadata); err == nil && json.Unmarshal(data, &m) == nil {
					path, _ := m["buildx.build.ref"].(string)
					ref = path[strings.LastIndex(path, "/")+1:]
				}
				os.Remove(metadata)
				return ref, r
			}
			ref, r := build("-t", "e2e-history")
			if r.code != 0 || ref == "" {
				t.Fatalf("%q: %s", ref, r)
			}
			if _, r := build("--build-arg", "BAD=1"); r.code == 0 {
				t.Fatal(r)
			}
			list := strings.Fields(c.ok(t, "buildx", "history", "ls", "--no-trunc", "--format", "{{.Ref}}={{.Status}}"))
			if len(list) < 2 || !strings.HasSuffix(list[0], "=Error") || !strings.HasSuffix(list[1], ref+"=Completed") {
				t.Errorf("the history is %q, and should begin with a failure and then %s", list, ref)
			}
			if got := c.ok(t, "buildx", "history", "inspect", ref); !strings.Contains(got, "Dockerfile") || !strings.Contains(got, c.name) {
				t.Errorf("inspect:\n%s", got)
			}
			if r := c.exec("buildx", "history", "logs", ref); !strings.Contains(r.out+r.err, "said "+c.name) {
				t.Errorf("the log lacks what the step said: %s", r)
			}
			if got := c.ok(t, "buildx", "history", "inspect", "attachment", ref, "--type", "provenance"); !strings.Contains(got, "buildDefinition") {
				t.Errorf("the provenance is %s", got)
			}
			if r := c.exec("buildx", "history", "logs", strings.Split(list[0], "=")[0]); !strings.Contains(r.out+r.err, "exit code: 1") {
				t.Errorf("the failed build's log does not say how it failed: %s", r)
			}
			if got := c.ok(t, "buildx", "history", "trace", ref); !strings.Contains(got, `"traceID"`) || !strings.Contains(got, "RUN echo said "+c.name) {
				t.Errorf("the trace lacks the step:\n%s", got)
			}
			bundle := filepath.Join(t.TempDir(), "bundle")
			c.ok(t, "buildx", "history", "export", "-o", bundle, ref)
			if st, err := os.Stat(bundle); err != nil || st.Size() == 0 {
				t.Errorf("the exported record: %v, %v", st, err)
			}
			c.ok(t, "buildx", "history", "rm", ref)
			if got := c.ok(t, "buildx", "history", "ls", "--no-trunc", "--format", "{{.Ref}}"); strings.Contains(got, ref) {
				t.Errorf("the removed record is there:\n%s", got)
			}
			c.ok(t, "run", "--rm", "e2e-history", "true") // the image is another matter
			c.ok(t, "buildx", "history", "rm", "--all")
			if got := c.ok(t, "buildx", "history", "ls", "--format", "{{.Ref}}"); got != "" {
				t.Errorf("after the removal of all: %s", got)
			}
		})
	}
}

// TestBuildPrune: the cache is shown and emptied in parts, by buildx and by the
// engine's own API.
func TestBuildPrune(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello\nRUN --mount=type=cache,target=/c head -c 3000000 /dev/urandom > /c/f\nCOPY f /f\nRUN head -c 5000000 /dev/urandom > /big\n", "f": "1",
	})
	types := func(c cli) string {
		var found []string
		for line := range strings.Lines(c.ok(t, "buildx", "du", "--verbose")) {
			if name, ok := strings.CutPrefix(line, "Type:"); ok {
				found = append(found, strings.TrimSpace(name))
			}
		}
		slices.Sort(found)
		return strings.Join(slices.Compact(found), " ")
	}
	for _, c := range append(h.buildxes(t), h.docker()) {
		t.Run(c.name, func(t *testing.T) {
			look := h.berth()
			prune := func(args ...string) string {
				t.Helper()
				verb := []string{"buildx", "prune", "-f"}
				if c.name == "docker" {
					verb = []string{"builder", "prune", "-f"}
				}
				return c.ok(t, append(verb, args...)...)
			}
			look.ok(t, "builder", "prune", "-a", "-f")
			look.ok(t, "buildx", "build", "-o", "type=cacheonly", dir)
			if got := types(look); got != "exec.cachemount regular source.local" {
				t.Errorf("the cache holds %q", got)
			}
			prune("--filter", "unused-for=24h")
			if got := types(look); got != "exec.cachemount regular source.local" {
				t.Errorf("without what was unused for a day, of which there is none: %q", got)
			}
			if got := prune("--filter", "type=exec.cachemount"); !strings.Contains(got, "3.0") && !strings.Contains(got, "3MB") {
				t.Errorf("the prune of cache mounts says %q", got)
			}
			if got := types(look); got != "regular source.local" {
				t.Errorf("without the caches of steps: %q", got)
			}
			if c.name == "docker" { // buildx leaves out what it does not know
				c.fails(t, "invalid filter", "builder", "prune", "-f", "--filter", "color=red")
			}
			prune("-a")
			if got := types(look); got != "" {
				t.Errorf("after all was pruned: %q", got)
			}
		})
	}
}

// tarNames lists the files of a tar.
func tarNames(t testing.TB, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, "./"))
	}
}

// TestBuildOutputs: a result goes wherever it is told to.
func TestBuildOutputs(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN echo x > /made\nCMD [\"cat\", \"/made\"]\n"})
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			out := t.TempDir()
			ref := func(name string) string { return suite.registry.image("e2e-out-" + name + ":1") }
			for _, args := range [][]string{
				{"--load", "-t", "e2e-load"},
				{"-o", "type=docker,name=e2e-docker"},
				{"-o", "type=image,name=e2e-image"},
				{"--push", "-t", ref("push")},
				{"-o", "type=registry,name=" + ref("registry")},
				{"-o", "type=image,\"name=" + ref("two") + "," + ref("names") + "\",push=true,compression=zstd,oci-mediatypes=true"},
				{"-o", "type=docker,dest=" + out + "/docker.tar,name=e2e-from-docker"},
				{"-o", "type=oci,dest=" + out + "/oci.tar,name=e2e-from-oci"},
				{"-o", "type=oci,tar=false,dest=" + out + "/oci"},
				{"-o", "type=tar,dest=" + out + "/files.tar"},
				{"-o", "type=local,dest=" + out + "/files", "-o", "type=image,name=e2e-besides"},
				{"-o", "type=cacheonly"},
			} {
				c.ok(t, append(append([]string{"buildx", "build", "-q"}, args...), dir)...)
			}
			runs := func(image string) {
				t.Helper()
				if got := c.ok(t, "run", "--rm", image); got != "x" {
					t.Errorf("%s prints %q", image, got)
				}
				c.ok(t, "rmi", image)
			}
			for _, name := range []string{"load", "docker", "image", "besides"} {
				runs("e2e-" + name)
			}
			for _, name := range []string{"push", "registry", "two", "names"} {
				c.ok(t, "rmi", ref(name))
				c.ok(t, "pull", "-q", ref(name))
				runs(ref(name))
			}
			for _, kind := range []string{"docker", "oci"} {
				c.ok(t, "load", "-i", filepath.Join(out, kind+".tar"))
				runs("e2e-from-" + kind)
			}
			if got := tarNames(t, filepath.Join(out, "files.tar")); !slices.Contains(got, "made") || !slices.Contains(got, "bin/busybox") {
				t.Errorf("the tar holds %q", got)
			}
			for file, want := range map[string]string{"files/made": "x\n", "oci/oci-layout": `{"imageLayoutVersion":"1.0.0"}`} {
				if got := mustRead(t, filepath.Join(out, file)); got != want {
					t.Errorf("%s holds %q", file, got)
				}
			}
			c.fails(t, `exporter "nowhere" could not be found`, "buildx", "build", "-o", "type=nowhere", dir)
			c.fails(t, "push", "buildx", "build", "--push", "-t", "localhost:1/none", dir)
		})
	}
}
