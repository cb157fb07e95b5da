//go:build linux

package e2e

import (
	"testing"

	"github.com/moby/moby/client"
)

// engine returns a client of the Go library that speaks to the home's machine,
// which runs, in the newest version that both know. It is closed with the test.
func (h *home) engine(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.New(client.WithHost("unix://" + h.status(t).DockerSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestEngineLibrary: the Go library finds the newest version of the API.
func TestEngineLibrary(t *testing.T) {
	c := machine(t).engine(t)
	p, err := c.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.OSType != "linux" || c.ClientVersion() != client.MaxAPIVersion {
		t.Errorf("ping: %+v; version %s, want the newest, %s", p, c.ClientVersion(), client.MaxAPIVersion)
	}
}
