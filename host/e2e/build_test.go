//go:build linux

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildContext writes the files of a build's context.
func buildContext(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// builder is a client with which to build, in one of the ways there are.
type builder struct {
	cli
	classic bool // the text and the errors of the classic builder
	buildx  bool // it pushes, and adds to an image how it was made
}

// builders are the built-in client, which speaks BuildKit's own protocol, Debian's
// docker with BuildKit by /build and /session, and with the classic builder's
// protocol, and in the long suite buildx's own program as docker's builder.
func (h *home) builders(t testing.TB) []builder {
	t.Helper()
	kit, classic := h.docker(), h.docker()
	kit.name, classic.name = "docker-buildkit", "docker-classic"
	kit.env = append(kit.env, "DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain")
	classic.env = append(classic.env, "DOCKER_BUILDKIT=0")
	all := []builder{{cli: h.berth(), buildx: true}, {cli: kit}, {cli: classic, classic: true}}
	for _, stock := range h.buildxes(t)[1:] {
		all = append(all, builder{cli: stock, buildx: true})
	}
	return all
}

// TestBuild: what a Dockerfile says is what the image has, at once and by every way
// to build it.
func TestBuild(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"Dockerfile": `ARG BASE=hello
FROM ${BASE} AS first
ARG WORD=none
COPY in/ /in/
RUN <<END
cat /in/one.txt > /made
echo "$WORD" >> /made
END
FROM first AS second
RUN touch /never
FROM hello
WORKDIR /new/dir
COPY --from=first --chown=12:34 /made /copied
RUN --network=none ip -o link | wc -l > links && id -u > /who
USER 12
ENV A=b
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /copied; stat -c %u:%g /copied; cat /new/dir/links; ls /in/skipped.txt 2>&1; echo $A; pwd"]
`,
		".dockerignore":  "**/skipped.txt\n",
		"in/one.txt":     "one\n",
		"in/skipped.txt": "skipped\n",
	})
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			name := "e2e-build-" + b.name
			r := b.exec("build", "-t", name, "--build-arg", "WORD=two", "--label", "l=v", dir)
			if r.code != 0 {
				t.Fatal(r)
			}
			if strings.Contains(r.out+r.err, "touch /never") {
				t.Errorf("a stage that nothing needs was built:\n%s", r)
			}
			want := "one\ntwo\n12:34\n1\nls: /in/skipped.txt: No such file or directory\nb\n/new/dir"
			if got := b.ok(t, "run", "--rm", name); got != want {
				t.Errorf("the image prints %q, want %q", got, want)
			}
			if got := b.ok(t, "inspect", "-f", "{{.Config.User}} {{.Config.Labels.l}} {{.RepoTags}}", name); !strings.HasPrefix(got, "12 v [") || !strings.Contains(got, name+":latest") {
				t.Errorf("the image's configuration is %q", got)
			}
			if b.classic && !regexp.MustCompile(`(?m)^Successfully built [0-9a-f]{12}$`).MatchString(r.out) {
				t.Errorf("the classic builder says no ID:\n%s", r)
			}
		})
	}
}

func mustRead(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestBuildClassic: the classic builder tells of each instruction of the stages that are
// built, in their order, and of each whose result comes from the cache.
func TestBuildClassic(t *testing.T) {
	h := machine(t)
	b := h.builders(t)[2]
	dir := t.TempDir()
	const name = "e2e-build-classic"
	tell := func(command, want string) {
		t.Helper()
		dockerfile := `ARG BASE=hello
FROM $BASE AS made
ARG WORD=none
RUN echo $WORD > /a
FROM hello AS never
RUN false
FROM hello
ENV A=b
COPY --from=made /a /b
WORKDIR /x
USER 12
` + command
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
			t.Fatal(err)
		}
		out := b.ok(t, "build", "-t", name, "--build-arg", "WORD="+t.Name(), dir)
		got := strings.Join(regexp.MustCompile(`(?m)^(Step .*| ---> .*)$`).FindAllString(out, -1), "\n")
		if got != want {
			t.Errorf("it tells\n%s\nwant\n%s\nof\n%s", got, want, out)
		}
		if !regexp.MustCompile(`(?m)^Successfully built [0-9a-f]{12}$`).MatchString(out) {
			t.Errorf("it says no ID:\n%s", out)
		}
	}
	const cold = `Step 1/10 : ARG BASE=hello
Step 2/10 : FROM $BASE AS made
Step 3/10 : ARG WORD=none
Step 4/10 : RUN echo $WORD > /a
Step 5/10 : FROM hello
Step 6/10 : ENV A=b
Step 7/10 : COPY --from=made /a /b
Step 8/10 : WORKDIR /x
Step 9/10 : USER 12
Step 10/10 : `
	warm := regexp.MustCompile(`(?m)^Step .* (ARG WORD|RUN|ENV|COPY|WORKDIR|USER).*$`).ReplaceAllString(cold, "$0\n ---> Using cache")
	tell("CMD one", cold+"CMD one")
	tell("CMD one", warm+"CMD one\n ---> Using cache")
	// What comes after the last step is told by the image.
	tell("CMD two", strings.Replace(warm, "USER 12\n ---> Using cache", "USER 12", 1)+"CMD two")
	b.fails(t, "returned a non-zero code: 1", "build", "-t", name, "--target", "never", dir)
	names := strings.Split(h.berth().ok(t, "buildx", "history", "ls", "--format", "{{.Name}}"), "\n")
	if !slices.Contains(names, name+":latest") || !slices.Contains(names, name+":latest (never)") {
		t.Errorf("the history knows %q", names)
	}
}

// TestBuildCache: what did not change is not run again, and what changed is.
func TestBuildCache(t *testing.T) {
	h := machine(t)
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			dir := buildContext(t, map[string]string{
				"Dockerfile": "FROM hello\nENV BY=" + b.name + "\nRUN cat /proc/sys/kernel/random/uuid > /early\nCOPY f /f\n" +
					"RUN cat /proc/sys/kernel/random/uuid > /late\nCMD cat /early /late\n",
				"f": "1",
			})
			name := "e2e-cache-" + b.name
			build := func(args ...string) (early, late, id string) {
				t.Helper()
				b.ok(t, append(append([]string{"build", "-q", "-t", name}, args...), dir)...)
				lines := strings.Fields(b.ok(t, "run", "--rm", name))
				if len(lines) != 2 {
					t.Fatalf("the image prints %q", lines)
				}
				return lines[0], lines[1], b.ok(t, "inspect", "-f", "{{.Id}}", name)
			}
			early, late, id := build()
			e, l, again := build()
			if e != early || l != late {
				t.Error("nothing changed, and a step ran again")
			}
			// How it was made has the time.
			if !b.buildx && again != id {
				t.Errorf("nothing changed, and the image is another: %s %s", id, again)
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("2"), 0o644); err != nil {
				t.Fatal(err)
			}
			e, l, _ = build()
			if e != early || l == late {
				t.Errorf("after a change of f: the step before ran again: %v, the step after: %v", e != early, l != late)
			}
			if e, _, _ := build("--no-cache"); e == early {
				t.Error("--no-cache used the cache")
			}
			// The image that lost its name is there without one.
			if got := b.ok(t, "images", "-q", "--no-trunc", "--filter", "dangling=true"); !strings.Contains(got, id) {
				t.Errorf("the former image %s is not among those without a name: %s", id, got)
			}
		})
	}
	b := h.builders(t)[1]
	if df := b.ok(t, "system", "df", "--format", "{{.Type}} {{.TotalCount}}"); regexp.MustCompile(`(?m)^Build Cache 0$`).MatchString(df) {
		t.Errorf("system df knows no build cache:\n%s", df)
	}
	if out := b.ok(t, "builder", "prune", "-a", "-f"); !strings.Contains(out, "Total reclaimed space:") {
		t.Errorf("builder prune says %q", out)
	}
	if got := b.ok(t, "run", "--rm", "e2e-cache-docker-buildkit"); got == "" {
		t.Error("the prune took an image's layers")
	}
}

// TestBuildExcluded: what .dockerignore excludes is in no step's context, even what the
// builder must read. A Dockerfile from elsewhere, which some clients put among the
// context's files, is not there, and changes nothing for the cache.
func TestBuildExcluded(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"in/Dockerfile": "FROM hello\nCOPY . /ctx/\nCMD ls -A /ctx\n", "in/.dockerignore": "Dockerfile\n.dockerignore\nskipped\n",
		"in/f": "", "in/skipped": "",
		"plain/f": "", "elsewhere": "FROM hello\nCOPY . /ctx/\nRUN cat /proc/sys/kernel/random/uuid > /u\nCMD ls -A /ctx; cat /u\n",
	})
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			name := "e2e-excluded-" + b.name
			b.ok(t, "build", "-q", "-t", name, dir+"/in")
			if got := b.ok(t, "run", "--rm", name); got != "f" {
				t.Errorf("the context had %q, want f alone", got)
			}
			var seen []string
			for range 2 {
				b.ok(t, "build", "-q", "-t", name, "-f", dir+"/elsewhere", dir+"/plain")
				seen = append(seen, b.ok(t, "run", "--rm", name))
			}
			if !strings.HasPrefix(seen[0], "f\n") || seen[0] != seen[1] {
				t.Errorf("with a Dockerfile from elsewhere, the images print %q", seen)
			}
		})
	}
}

// TestBuildUnpacked: the layers of an image that is unpacked are not extracted once
// more for the build that stands on it: its files are there once.
func TestBuildUnpacked(t *testing.T) {
	h := machine(t)
	b := h.berth()
	name := "e2e-base-" + strings.ToLower(rand.Text())
	dir := buildContext(t, map[string]string{
		"base/Dockerfile": "FROM hello\nRUN mkdir -p /dir/sub && touch /dir/sub/old /gone && cp /bin/busybox /" + name + " && chmod 4711 /" + name + "\n" +
			"RUN rm -r /dir /gone && mkdir -m 1770 /dir && chown 3:4 /dir && cp -p /" + name + " /dir/\n",
		"top/Dockerfile": "FROM " + name + "\nRUN stat -c '%a %u:%g' /dir > /seen && stat -c '%a %h' /" + name + " /dir/" + name + " >> /seen && " +
			"ls -A /dir | wc -l >> /seen && ! ls /gone\nCMD cat /seen\n",
	})
	b.ok(t, "build", "-q", "-t", name, dir+"/base")
	b.ok(t, "save", "-o", dir+"/image.tar", name)
	b.ok(t, "rmi", name)
	b.ok(t, "builder", "prune", "-a", "-f")
	b.ok(t, "load", "-i", dir+"/image.tar")
	// The names of either layer's file, in all layers there are.
	files := func() []string {
		t.Helper()
		return strings.Fields(b.ok(t, "ssh", "--", "find /var/lib/berth -xdev -path '*/fs/*' -name "+name+" | sort"))
	}
	unpacked := files()
	if len(unpacked) != 2 {
		t.Fatalf("the loaded image's file is in %q, want two layers", unpacked)
	}
	b.ok(t, "build", "-q", "-t", name+"-top", dir+"/top")
	if built := files(); !slices.Equal(built, unpacked) {
		t.Errorf("unpacked: %q; after a build on it: %q", unpacked, built)
	}
	want := "1770 3:4\n4711 1\n4711 1\n1"
	if got := b.ok(t, "run", "--rm", name+"-top"); got != want {
		t.Errorf("the image on top prints %q, want %q", got, want)
	}
	// The base stays whole when only the build's cache goes, and the other way round.
	b.ok(t, "builder", "prune", "-a", "-f")
	b.ok(t, "run", "--rm", name, "test", "-u", "/dir/"+name)
	b.ok(t, "rmi", name)
	b.ok(t, "run", "--rm", name+"-top", "test", "-u", "/dir/"+name)
	b.ok(t, "rmi", name+"-top")
}

// TestBuildMounts: secrets and caches are there for the step, and in no image.
func TestBuildMounts(t *testing.T) {
	h := machine(t)
	b := h.builders(t)[0]
	dir := buildContext(t, map[string]string{
		"Dockerfile": `FROM hello
RUN --mount=type=secret,id=s,target=/run/secret cp /run/secret /copied && ls -l /run/secret
ARG ROUND
RUN --mount=type=cache,target=/cache : $ROUND; echo x >> /cache/lines && wc -l < /cache/lines > /count
RUN --mount=type=bind,source=sub,target=/sub cat /sub/f > /bound && ! touch /sub/g
RUN --mount=type=tmpfs,target=/t touch /t/x
CMD cat /copied /count /bound; ls /run/secret /cache /sub /t 2>&1; true
`,
		"sub/f": "bound\n", "secret": "hidden\n",
	})
	build := func(args ...string) string {
		t.Helper()
		b.ok(t, append(append([]string{"build", "-q", "-t", "e2e-mounts", "--secret", "id=s,src=" + filepath.Join(dir, "secret")}, args...), dir)...)
		return b.ok(t, "run", "--rm", "e2e-mounts")
	}
	if got := build(); !strings.HasPrefix(got, "hidden\n1\nbound\n") || strings.Count(got, "No such file") != 4 {
		t.Errorf("the image prints %q", got)
	}
	if got := build("--build-arg", "ROUND=2"); !strings.HasPrefix(got, "hidden\n2\nbound\n") {
		t.Errorf("the second image prints %q: is the cache kept?", got)
	}
	// As with docker, --no-cache empties the caches of the steps too.
	if got := build("--no-cache"); !strings.HasPrefix(got, "hidden\n1\nbound\n") {
		t.Errorf("the image made anew prints %q", got)
	}
	b.fails(t, "secret", "build", "--no-cache", dir)
}

// TestBuildOutput: a result goes to the client's disk, and is the client's there.
func TestBuildOutput(t *testing.T) {
	h := machine(t)
	b := h.builders(t)[0]
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello AS b\nRUN mkdir /out && echo x > /out/file && ln -s file /out/link\nFROM scratch\nCOPY --from=b /out /\n",
	})
	dest := t.TempDir()
	b.ok(t, "build", "-o", dest, dir)
	if got := mustRead(t, filepath.Join(dest, "link")); got != "x\n" {
		t.Errorf("the file holds %q", got)
	}
	file := filepath.Join(t.TempDir(), "out.tar")
	b.ok(t, "build", "-o", "type=tar,dest="+file, dir)
	if st, err := os.Stat(file); err != nil || st.Size() < 1024 {
		t.Errorf("the tar is %v, %v", st, err)
	}
}

// TestBuildFails: a build that fails says where and why, and leaves nothing running.
func TestBuildFails(t *testing.T) {
	h := machine(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dockerfile, want string
		classic                string // if it is another
	}{
		{"step", "FROM hello\nRUN echo before; exit 7", "exit code: 7", "The command '/bin/sh -c echo before; exit 7' returned a non-zero code: 7"},
		{"no program", "FROM hello\nRUN [\"/no/such\"]", "exit code: 127", "returned a non-zero code: 127"},
		{"syntax", "FROM hello\nRUNN x", "unknown instruction: RUNN", ""},
		{"empty", "", "Dockerfile", ""},
		{"no base", "FROM localhost:1/none", "localhost:1", ""},
		{"outside", "FROM hello\nCOPY ../outside /x", "not found", ""},
		{"link outside", "FROM hello\nCOPY link /x", "not found", ""},
		{"no insecure step", "FROM hello\nRUN --security=insecure true", "security", ""},
	} {
		dir := buildContext(t, map[string]string{"Dockerfile": c.dockerfile})
		if err := os.Symlink("../"+filepath.Base(filepath.Dir(outside))+"/outside", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		for _, b := range h.builders(t) {
			t.Run(c.name+"/"+b.name, func(t *testing.T) {
				want := c.want
				if b.classic && c.classic != "" {
					want = c.classic
				}
				b.fails(t, want, "build", "-t", "e2e-fails", dir)
			})
		}
	}
	for _, b := range h.builders(t) {
		if r := b.exec("build", buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN exit 7"})); b.classic && r.code != 7 {
			t.Errorf("%s\nit should have ended with the step's code", r)
		}
	}
	h.noSteps(t)
	h.docker().fails(t, "No such image", "image", "inspect", "e2e-fails")
}

// noSteps checks that no step of a build runs, and none of what it had is left: one
// process at most, in a cgroup of its own, is ready for the next.
func (h *home) noSteps(t testing.TB) {
	t.Helper()
	const look = `if cd /sys/fs/cgroup/berth-build 2>/dev/null; then for p in $(find . -name cgroup.procs -exec cat {} +); do ` +
		`[ "$(tr '\0' ' ' </proc/$p/cmdline)" = 'berth-exec ' ] || echo process $p; done; ` +
		`ls -d */ */*/ 2>/dev/null | grep -v "^warm-[A-Z0-9]*/$"; ls -d warm-*/ 2>/dev/null | tail -n +2; fi;` +
		`ls /run/berth/build/tasks 2>/dev/null; ls -d /run/berth/build/[a-z0-9]*/rootfs 2>/dev/null; grep /run/berth/build/ /proc/mounts; true`
	eventually(t, "the end of every step", func() bool { return h.berth().ok(t, "ssh", look) == "" })
}

// TestBuildCgroup: a cgroup that a build asks for is below that of all builds, and goes
// with the last step in it.
func TestBuildCgroup(t *testing.T) {
	h := machine(t)
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			b.ok(t, "build", "--no-cache", "--cgroup-parent", "outer/inner", buildIn(t, "FROM hello\nRUN true"))
			h.noSteps(t)
		})
	}
}

// TestBuildLimits: clients that can ask for it have each step limited as a container.
func TestBuildLimits(t *testing.T) {
	h := machine(t)
	dir := buildIn(t, "FROM hello\nRUN cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max /sys/fs/cgroup/cpu.max > /max\nCMD cat /max\n")
	for _, b := range h.builders(t)[1:3] {
		t.Run(b.name, func(t *testing.T) {
			b.ok(t, "build", "-q", "--no-cache", "-t", "e2e-limits", "--memory", "64m", "--memory-swap", "-1", "--cpu-quota", "50000", dir)
			if got := b.ok(t, "run", "--rm", "e2e-limits"); got != "67108864\nmax\n50000 100000" {
				t.Errorf("the step's limits were %q", got)
			}
		})
	}
}

// TestBuildReady: a step that follows another begins in a process that was ready.
func TestBuildReady(t *testing.T) {
	h := machine(t)
	c := h.berth()
	c.ok(t, "build", "--no-cache", buildIn(t, "FROM hello\nRUN true"))
	const procs = "/sys/fs/cgroup/berth-build/warm-*/cgroup.procs"
	ready := ""
	eventually(t, "a process that is ready", func() bool {
		ready = c.ok(t, "ssh", "cat "+procs+" 2>/dev/null; true")
		return ready != ""
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := c.command(ctx, "build", "--no-cache", buildIn(t, "FROM hello\nRUN : e2e-ready; exec sleep 600"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the step in that process", func() bool { return strings.Contains(c.ok(t, "ssh", "cat /proc/"+ready+"/cmdline; true"), "sleep") })
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	h.noSteps(t)
}

// TestBuildCancelled: a client that leaves takes its build with it.
func TestBuildCancelled(t *testing.T) {
	h := machine(t)
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			mark := "cancel-" + b.name
			dir := buildContext(t, map[string]string{"Dockerfile": fmt.Sprintf("FROM hello\nRUN : %s; trap '' INT TERM; sleep 600 & sleep 600; :\n", mark)})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			cmd := b.command(ctx, "build", dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does: a plugin is a process of its own
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			h.stepRuns(t, mark)
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the client says that the build succeeded")
				}
			case <-time.After(patience):
				t.Fatal("the client does not end")
			}
			h.noSteps(t)
		})
	}
}
