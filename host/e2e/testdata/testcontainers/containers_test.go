// Package testcontainers is a test as users of testcontainers-go have them. It
// cleans nothing up: that is the reaper's work, which the test around it looks at.
package testcontainers

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

func TestContainers(t *testing.T) {
	ctx := t.Context()
	shared, err := network.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	web, err := testcontainers.Run(ctx, "hello",
		testcontainers.WithCmd("httpd", "-f", "-v", "-p", "80", "-h", "/www"),
		testcontainers.WithExposedPorts("80/tcp"),
		testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: strings.NewReader("served"), ContainerFilePath: "/www/page", FileMode: 0o644,
		}),
		network.WithNetwork([]string{"web"}, shared),
		testcontainers.WithWaitStrategy(wait.ForAll(
			wait.ForListeningPort("80/tcp"),
			wait.ForHTTP("/page").WithPort("80/tcp"),
			wait.ForExec([]string{"test", "-e", "/www/page"}),
		)),
	)
	if err != nil {
		t.Fatal(err)
	}
	url, err := web.PortEndpoint(ctx, "80/tcp", "http")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url + "/page")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "served" {
		t.Errorf("%s: %q, %v", url, text, err)
	}

	client, err := testcontainers.Run(ctx, "hello",
		testcontainers.WithCmd("wget", "-q", "-O", "-", "http://web/page"),
		network.WithNetwork(nil, shared),
		testcontainers.WithWaitStrategy(wait.ForLog("served"), wait.ForExit()),
	)
	if err != nil {
		t.Fatal(err)
	}
	state, err := client.State(ctx)
	if err != nil || state.ExitCode != 0 {
		t.Errorf("the client: %+v, %v", state, err)
	}
	code, out, err := web.Exec(ctx, []string{"sh", "-c", "echo said; exit 3"})
	if err != nil || code != 3 {
		t.Errorf("exec: %d, %v", code, err)
	}
	if text, err := io.ReadAll(out); err != nil || !strings.Contains(string(text), "said") {
		t.Errorf("exec said %q, %v", text, err)
	}
	if _, err := testcontainers.Run(ctx, "hello", testcontainers.WithCmd("sleep", "1000000"),
		testcontainers.WithMounts(testcontainers.VolumeMount("testcontainers-e2e", "/data"))); err != nil {
		t.Error(err)
	}
}
