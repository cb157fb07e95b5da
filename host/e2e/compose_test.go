//go:build linux

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// compose is compose with a project's folder.
func compose(c cli, dir string, env ...string) cli {
	c.pre = append(append([]string(nil), c.pre...), "--project-directory", dir, "-f", filepath.Join(dir, "compose.yaml"))
	c.env = append(append([]string(nil), c.env...), env...)
	return c
}

// composeBerth is compose as berth has it.
func (h *home) composeBerth() cli {
	c := h.berth()
	c.name, c.pre = "berth compose", []string{"compose"}
	return c
}

// TestCompose: a small project comes up in order, scales, and leaves nothing.
func TestCompose(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"compose.yaml": `name: e2e-small
services:
  first:
    image: hello
    command: sh -c 'touch /shared/first; exit 0'
    volumes: [shared:/shared]
  web:
    image: hello
    command: httpd -f -p 80 -h /www
    depends_on: {first: {condition: service_completed_successfully}}
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, "http://127.0.0.1/page"], interval: 1s, retries: 120}
    ports: ["127.0.0.1::80"]
    volumes: ["./www:/www:ro", "shared:/shared"]
    secrets: [word]
    configs: [{source: greeting, target: /etc/greeting}]
    environment: {NAME: "${NAME:-nobody}"}
    networks: {default: {aliases: [site]}}
  client:
    image: hello
    command: sh -c 'wget -q -O - http://site/page; exec sleep 1000000'
    init: true
    depends_on: {web: {condition: service_healthy}}
  extra:
    image: hello
    command: sleep 1000000
    profiles: [more]
volumes: {shared: {}}
secrets: {word: {file: ./word}}
configs: {greeting: {content: "hello ${NAME:-nobody}"}}
`,
		"www/page": "served\n",
		"word":     "sesame",
	})
	c := compose(h.composeBerth(), dir, "NAME=jo")
	t.Cleanup(func() { c.exec("--profile", "more", "down", "-v", "--timeout", "1") })
	c.ok(t, "up", "-d", "--wait")

	if got := c.ok(t, "ps", "--format", "{{.Service}} {{.State}} {{.Health}}"); !strings.Contains(got, "web running healthy") ||
		!strings.Contains(got, "client running") || strings.Contains(got, "extra") {
		t.Errorf("ps:\n%s", got)
	}
	if got := c.ok(t, "exec", "-T", "web", "sh", "-c", "cat /run/secrets/word /etc/greeting; echo; echo $NAME; ls /shared"); got != "sesamehello jo\njo\nfirst" {
		t.Errorf("in web: %q", got)
	}
	eventually(t, "the client's answer in the logs", func() bool {
		return strings.Contains(c.ok(t, "logs", "--no-color", "client"), "| served")
	})
	addr := c.ok(t, "port", "web", "80")
	if got := get(t, "http://"+addr+"/page"); got != "served\n" {
		t.Errorf("from the host: %q", got)
	}
	before := c.ok(t, "ps", "-q", "web")
	c.ok(t, "up", "-d", "--wait") // has nothing to do
	c.ok(t, "up", "-d", "--wait", "--scale", "web=2")
	if got := strings.Fields(c.ok(t, "ps", "-q", "web")); len(got) != 2 || !strings.Contains(strings.Join(got, " "), before) {
		t.Errorf("scaled: %q, of which one was %q", got, before)
	}
	c.ok(t, "--profile", "more", "up", "-d", "extra")
	if r := c.exec("run", "--rm", "-T", "client", "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("%s", r)
	}
	c.ok(t, "--profile", "more", "down", "-v", "--timeout", "1")
	nothingOf(t, h, "e2e-small")
}

// TestComposeBuild: compose builds by buildx, which it finds with berth.
func TestComposeBuild(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"compose.yaml": `name: e2e-built
services:
  made:
    build:
      context: .
      args: {WORD: "${WORD:-none}"}
      additional_contexts: {other: ./other}
`,
		"Dockerfile":  "FROM hello\nARG WORD\nRUN echo $WORD > /word\nCOPY --from=other file /\nCMD cat /word /file\n",
		"other/file":  "other",
		"other/empty": "",
	})
	c := compose(h.composeBerth(), dir, "WORD=built")
	t.Cleanup(func() { c.exec("down", "-v", "--rmi", "all", "--timeout", "1") })
	if r := c.exec("up", "--build", "--no-log-prefix", "--abort-on-container-exit"); r.code != 0 || !strings.Contains(r.out, "built\nother") {
		t.Errorf("%s", r)
	}
	if got := h.berth().ok(t, "images", "--format", "{{.Repository}}", "e2e-built-made"); got != "e2e-built-made" {
		t.Errorf("the image is not there: %q", got)
	}
}

// nothingOf proves that nothing of a compose project is left.
func nothingOf(t *testing.T, h *home, project string) {
	t.Helper()
	filter := "label=com.docker.compose.project=" + project
	for _, args := range [][]string{
		{"ps", "-aq", "--filter", filter},
		{"network", "ls", "-q", "--filter", filter},
		{"volume", "ls", "-q", "--filter", filter},
	} {
		if left := h.berth().ok(t, args...); left != "" {
			t.Errorf("left of %s: %s: %s", project, strings.Join(args, " "), left)
		}
	}
}
