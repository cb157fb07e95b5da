//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// dockerfileFrontend is BuildKit's own program for a frontend image.
const dockerfileFrontend = "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend"

// TestBuildSyntax: a Dockerfile names the image that reads it; a registry has it,
// or the built-in frontend stands in for the published one and says so.
func TestBuildSyntax(t *testing.T) {
	needFull(t) // compiles the frontend
	h := machine(t)
	c := h.berth()
	ref := suite.registry.image("e2e-frontend:1")
	frontendImage(t, c, ref, exec.Command("go", "build", dockerfileFrontend))
	c.ok(t, "builder", "prune", "-a", "-f")
	const body = "FROM hello\nARG WORD=default\nRUN <<END\necho $WORD > /word\nEND\nCMD [\"cat\", \"/word\"]\n"
	external := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + ref + "\n" + body})
	missing := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + suite.registry.image("e2e-frontend:none") + "\n" + body})
	published := buildContext(t, map[string]string{"Dockerfile": "# syntax=docker/dockerfile:1\n" + body})
	bad := buildContext(t, map[string]string{"Dockerfile": "# syntax=" + ref + "\nFROM hello\nRUNN x\n"})
	for _, b := range h.builders(t) {
		t.Run(b.name, func(t *testing.T) {
			prints := func(dir, want string, args ...string) result {
				t.Helper()
				r := b.exec(append(append([]string{"build", "-t", "e2e-syntax", "--build-arg", "WORD=" + want}, args...), dir)...)
				if r.code != 0 {
					t.Fatal(r)
				}
				if got := h.berth().ok(t, "run", "--rm", "e2e-syntax"); got != want {
					t.Errorf("the image prints %q, want %q", got, want)
				}
				return r
			}
			if r := prints(external, "external"); !b.classic && !strings.Contains(r.err, "docker-image://"+ref) {
				t.Errorf("the build shows nothing of the frontend's image: %s", r)
			}
			b.fails(t, "unknown instruction: RUNN", "build", bad)
			b.fails(t, "e2e-frontend:none: not found", "build", missing)
			if r := prints(published, "published"); !strings.Contains(r.out+r.err, "docker/dockerfile:1 cannot be fetched, the built-in Dockerfile frontend is used in its place") {
				t.Errorf("it does not say that the built-in frontend is used: %s", r)
			}
		})
	}
	c.ok(t, "rmi", "e2e-syntax")
}

// frontendImage has a program built and pushes an image of it, by which a frontend is
// known.
func frontendImage(t testing.TB, c cli, ref string, build *exec.Cmd) {
	t.Helper()
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM scratch\nLABEL moby.buildkit.frontend.network.none=\"true\"\n" +
			"LABEL moby.buildkit.frontend.caps=\"moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts\"\n" +
			"COPY frontend /bin/frontend\nENTRYPOINT [\"/bin/frontend\"]\n",
	})
	last := len(build.Args) - 1
	build.Args = append(build.Args[:last:last], "-o", filepath.Join(dir, "frontend"), build.Args[last])
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.ok(t, "buildx", "build", "-q", "--push", "-t", ref, dir)
	c.ok(t, "rmi", ref)
}

// foreignFrontend is a frontend that runs a program of an image for another
// architecture in a container of its own. The result is what the program says.
const foreignFrontend = `package main

import (
	"bytes"
	"context"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type discard struct{ *bytes.Buffer }

func (discard) Close() error { return nil }

func main() {
	err := grpcclient.RunFromEnvironment(context.Background(), func(ctx context.Context, c client.Client) (*client.Result, error) {
		opts := c.BuildOpts().Opts
		platform := llb.Platform(ocispec.Platform{OS: "linux", Architecture: opts["build-arg:ARCH"]})
		def, err := llb.Image(opts["build-arg:IMAGE"], platform).Marshal(ctx, platform)
		if err != nil {
			return nil, err
		}
		root, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		container, err := c.NewContainer(ctx, client.NewContainerRequest{
			Mounts:   []client.Mount{{Dest: "/", Ref: root.Ref, MountType: pb.MountType_BIND}},
			Platform: &pb.Platform{OS: "linux", Architecture: opts["build-arg:ARCH"]},
		})
		if err != nil {
			return nil, err
		}
		said := discard{&bytes.Buffer{}}
		process, err := container.Start(ctx, client.StartRequest{Args: []string{"/say"}, Cwd: "/", Stdout: said, Stderr: said})
		if err == nil {
			err = process.Wait()
		}
		if err != nil {
			return nil, err
		}
		out, err := llb.Scratch().File(llb.Mkfile("/said", 0o644, said.Bytes())).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		return c.Solve(ctx, client.SolveRequest{Definition: out.ToPB()})
	})
	if err != nil {
		panic(err)
	}
}
`

// TestFrontendForeign: a container that a frontend starts may be for the other
// architecture, also if nothing was before.
func TestFrontendForeign(t *testing.T) {
	needFull(t)
	h := machine(t)
	c := h.berth()
	arch, handler := foreignArch()
	source := filepath.Join(t.TempDir(), "main.go")
	writeFile(t, source, foreignFrontend)
	frontend, image := suite.registry.image("e2e-frontend:runs"), suite.registry.image("e2e-say:1")
	frontendImage(t, c, frontend, exec.Command("go", "build", source))
	say := buildIn(t, "FROM scratch\nCOPY program /say")
	program := buildProgram(t, "package main\n\nimport \"runtime\"\n\nfunc main() { print(runtime.GOARCH) }\n", "GOARCH="+arch)
	if err := os.Rename(program, filepath.Join(say, "program")); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "buildx", "build", "-q", "--push", "--platform", "linux/"+arch, "-t", image, say)
	c.ok(t, "rmi", image)
	h.forgetForeign(t, handler)
	out := t.TempDir()
	c.ok(t, "buildx", "build", "--no-cache", "-o", out, "--build-arg", "ARCH="+arch, "--build-arg", "IMAGE="+image, buildIn(t, "# syntax="+frontend+"\n"))
	if got := mustRead(t, filepath.Join(out, "said")); got != arch {
		t.Errorf("the program for %s says %q", arch, got)
	}
}

// hostileFrontend is a frontend that asks for more than a client has allowed. The
// result is what it got.
const hostileFrontend = `package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/pb"
)

func main() {
	err := grpcclient.RunFromEnvironment(context.Background(), func(ctx context.Context, c client.Client) (*client.Result, error) {
		image := llb.Image(c.BuildOpts().Opts["build-arg:IMAGE"])
		solve := func(s llb.State) (*client.Result, error) {
			def, err := s.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return c.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		}
		root, err := solve(image)
		if err != nil {
			return nil, err
		}
		var got strings.Builder
		try := func(what string, err error) {
			if err == nil {
				fmt.Fprintln(&got, what)
			}
		}
		container := func(r client.NewContainerRequest, s client.StartRequest) error {
			r.Mounts = append(r.Mounts, client.Mount{Dest: "/", Ref: root.Ref, MountType: pb.MountType_BIND})
			ctr, err := c.NewContainer(ctx, r)
			if err != nil {
				return err
			}
			defer ctr.Release(ctx)
			s.Cwd = "/"
			if s.Args == nil {
				s.Args = []string{"true"}
			}
			p, err := ctr.Start(ctx, s)
			if err != nil {
				return err
			}
			return p.Wait()
		}
		step := func(opts ...llb.RunOption) error {
			_, err := solve(image.Run(append(opts, llb.Args([]string{"true"}), llb.IgnoreCache)...).Root())
			return err
		}
		files := func(selector string) error {
			return container(client.NewContainerRequest{
				Mounts: []client.Mount{{Dest: "/m", Ref: root.Ref, Selector: selector, MountType: pb.MountType_BIND}},
			}, client.StartRequest{Args: []string{"ls", "/m/lib/berth"}})
		}
		try("a container", container(client.NewContainerRequest{}, client.StartRequest{}))
		try("a step", step())
		try("a step in a cgroup", step(llb.WithCgroupParent("../../e2e-escaped")))
		try("the machine's network for a container", container(client.NewContainerRequest{NetMode: pb.NetMode_HOST}, client.StartRequest{}))
		try("an insecure container", container(client.NewContainerRequest{}, client.StartRequest{SecurityMode: pb.SecurityMode_INSECURE}))
		try("the machine's network for a step", step(llb.Network(pb.NetMode_HOST)))
		try("an insecure step", step(llb.Security(pb.SecurityMode_INSECURE)))
		try("the machine's files", files("../../../../../../var"))
		try("the files of a process", files("/proc/1/root/var"))
		_, err = solve(llb.Local("e2e-other"))
		try("another folder of the client", err)
		_, err = solve(image.Run(llb.Args([]string{"true"}), llb.AddSecret("/s", llb.SecretID("s"))).Root())
		try("a secret", err)
		return solve(llb.Scratch().File(llb.Mkfile("/got", 0o644, []byte(got.String()))))
	})
	if err != nil {
		panic(err)
	}
}
`

// TestFrontendHostile: a frontend that a Dockerfile names gets no more than the
// client allows, and its containers no more than steps.
func TestFrontendHostile(t *testing.T) {
	needFull(t)
	h := machine(t)
	c := h.berth()
	source := filepath.Join(t.TempDir(), "main.go")
	writeFile(t, source, hostileFrontend)
	frontend := suite.registry.image("e2e-frontend:hostile")
	frontendImage(t, c, frontend, exec.Command("go", "build", source))
	out := t.TempDir()
	c.ok(t, "buildx", "build", "--no-cache", "-o", out, "--build-arg", "IMAGE="+suite.registry.image("hello:1"), buildIn(t, "# syntax="+frontend+"\n"))
	if got := mustRead(t, filepath.Join(out, "got")); got != "a container\na step\na step in a cgroup\n" {
		t.Errorf("the frontend got\n%s", got)
	}
	if got := c.ok(t, "ssh", "find /sys/fs/cgroup -maxdepth 2 -name 'e2e-*'"); got != "/sys/fs/cgroup/berth-build/e2e-escaped" {
		t.Errorf("of the cgroups that it named there are %q", got)
	}
	c.ok(t, "ssh", "rmdir /sys/fs/cgroup/berth-build/e2e-escaped")
	h.noSteps(t)
}
