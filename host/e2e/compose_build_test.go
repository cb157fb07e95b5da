//go:build linux

package e2e

import (
	"strings"
	"testing"
)

// TestComposeBuilds: compose builds several services at once, as each says, and what
// it pushes can be had from the registry.
func TestComposeBuilds(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"compose.yaml": `name: e2e-builds
services:
  base:
    image: ${REGISTRY}e2e-builds-base:1
    build:
      context: ./base
      args: {WORD: "${WORD:-none}"}
      labels: {of: compose}
      tags: ["${REGISTRY}e2e-builds-base:2"]
  top:
    image: ${REGISTRY}e2e-builds-top:1
    command: cat /word /other /arg
    build:
      context: ./top
      target: wanted
      args: [ARG]
      no_cache: true
      extra_hosts: ["known:192.0.2.7"]
      additional_contexts: {base: service:base, other: ./other}
  inline:
    command: cat /made
    build:
      context: .
      dockerfile_inline: |
        FROM hello
        RUN echo inline > /made
`,
		"base/Dockerfile": "FROM hello\nARG WORD\nRUN echo $WORD > /word\n",
		"top/Dockerfile": "FROM base AS wanted\nARG ARG\nCOPY --from=other file /other\nRUN echo $ARG > /arg && grep 192.0.2.7 /etc/hosts\n" +
			"FROM wanted\nRUN exit 1\n",
		"other/file": "other\n",
	})
	registry := suite.registry.image("")
	c := compose(h.composeBerth(), dir, "REGISTRY="+registry, "WORD=first", "ARG=from the environment")
	t.Cleanup(func() { c.exec("down", "-v", "--rmi", "all", "--timeout", "1") })
	c.ok(t, "build")
	d := h.berth()
	if got := d.ok(t, "inspect", "-f", "{{.Config.Labels.of}}", registry+"e2e-builds-base:2"); got != "compose" {
		t.Errorf("the label is %q", got)
	}
	prints := func(service, want string, args ...string) {
		t.Helper()
		r := c.exec(append(append([]string{"run", "--rm", "-T"}, args...), service)...)
		if r.code != 0 || !strings.HasSuffix(strings.TrimSpace(r.out), want) { // the build's progress is in it too
			t.Errorf("%s\nwant %q", r, want)
		}
	}
	prints("top", "first\nother\nfrom the environment")
	prints("inline", "inline")
	c.env = append(c.env, "WORD=second")
	if r := c.exec("up", "--build", "--no-log-prefix", "--abort-on-container-exit", "--no-attach", "base", "top"); r.code != 0 || !strings.Contains(r.out, "second\nother") {
		t.Errorf("%s", r)
	}
	prints("top", "second\nother\nfrom the environment", "--build", "-e", "X=y", "--quiet-build")
	c.ok(t, "down", "--timeout", "1")
	c.ok(t, "build", "--push", "--build-arg", "WORD=pushed", "base", "top")
	for _, image := range []string{"base:1", "base:2", "top:1"} {
		d.ok(t, "rmi", "-f", registry+"e2e-builds-"+image)
		if got := d.ok(t, "run", "--rm", registry+"e2e-builds-"+image, "cat", "/word"); got != "pushed" {
			t.Errorf("what was pushed as %s has %q", image, got)
		}
		d.ok(t, "rmi", registry+"e2e-builds-"+image)
	}
	if got := c.ok(t, "build", "--print", "inline"); !strings.Contains(got, `"dockerfile-inline"`) {
		t.Errorf("the plan of the build is %s", got)
	}
	bad := compose(h.composeBerth(), buildContext(t, map[string]string{
		"compose.yaml": "name: e2e-builds-bad\nservices:\n  good: {build: {dockerfile_inline: FROM hello}}\n  bad: {build: {dockerfile_inline: \"FROM hello\\nRUN exit 9\"}}\n",
	}))
	bad.fails(t, "exit code: 9", "build")
	h.noSteps(t)
}
