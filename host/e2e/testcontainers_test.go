//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ryuk is the image that this version of testcontainers-go runs as its reaper.
const ryuk = "testcontainers/ryuk:0.14.0"

// TestTestcontainers runs a test that uses testcontainers-go, as it comes, and looks
// at what its reaper leaves. The reaper is a program of ours that speaks Ryuk's
// protocol, or Ryuk's own, when BERTH_RYUK names it: it cannot be built from
// the module proxy everywhere.
func TestTestcontainers(t *testing.T) {
	needFull(t)
	h := machine(t)
	dir := filepath.Join("testdata", "testcontainers")
	program := os.Getenv("BERTH_RYUK")
	if program == "" {
		program = filepath.Join(t.TempDir(), "ryuk")
		build := exec.Command("go", "build", "-o", program, "./reaper")
		build.Dir = dir
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	c := h.berth()
	if r := c.execIn(onlyFile(t, program, "ryuk"), "import", "--change", `ENTRYPOINT ["/ryuk"]`, "-", ryuk); r.code != 0 {
		t.Fatalf("%s", r)
	}
	t.Cleanup(func() { c.exec("rmi", "-f", ryuk) })

	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	test := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", ".")
	test.Dir = dir
	test.Env = append(h.env(), "DOCKER_HOST=unix://"+h.status(t).DockerSocket, "RYUK_VERBOSE=true",
		// Where the test runs in a container itself, ports would be sought at its gateway.
		"TESTCONTAINERS_HOST_OVERRIDE=localhost")
	for _, name := range []string{"GOCACHE", "GOMODCACHE"} { // HOME is another one
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		test.Env = append(test.Env, name+"="+strings.TrimSpace(string(out)))
	}
	out, err := test.CombinedOutput()
	t.Logf("%s", tail(string(out), 60))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "Container started") || strings.Contains(string(out), "Ryuk has been disabled") {
		t.Error("nothing was started, or without the reaper")
	}
	eventually(t, "the reaper has removed everything, and is gone itself", func() bool {
		for _, args := range [][]string{
			{"ps", "-aq", "--filter", "label=org.testcontainers"},
			{"network", "ls", "-q", "--filter", "label=org.testcontainers"},
			{"volume", "ls", "-q", "--filter", "label=org.testcontainers"},
		} {
			if c.ok(t, args...) != "" {
				return false
			}
		}
		return true
	})
}

// onlyFile is a tar that holds one program.
func onlyFile(t testing.TB, program, name string) string {
	t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
