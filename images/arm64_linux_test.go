package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/images"
)

// TestArm64 boots the image for arm64 with its engine, runs a container in it, and
// boots it again from the disk that the first boot has made.
func TestArm64(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" || os.Getenv("BERTH_FULL") != "1" {
		t.Skip("boots an emulated arm64 machine: run with BERTH_VM=1 BERTH_FULL=1, or make test-full-arm64")
	}
	image, err := images.Open("../bin/image-arm64")
	if err != nil {
		t.Fatalf("%v\nmake test-full-arm64 builds it", err)
	}
	if image.Manifest.Arch != "arm64" {
		t.Fatalf("the image is for %s", image.Manifest.Arch)
	}
	disk := filepath.Join(t.TempDir(), "data")
	grow(t, disk, 1<<30)
	for i := range 2 {
		g := start(t, image, disk)
		g.version = image.Manifest.Version
		g.welcome()
		g.awaitPhase("engine")
		t.Logf("phases of boot %d:\n%s", i+1, g.phases())
		docker := dockerAPI{t, &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return g.machine.Dial(ctx, wire.PortDocker) },
		}}}
		var version struct{ Arch, Os string }
		docker.call("GET", "/version", nil, &version)
		if version.Arch != "arm64" || version.Os != "linux" {
			t.Errorf("the engine is for %s/%s", version.Os, version.Arch)
		}
		if got := docker.run("hello", "uname", "-m"); got != "aarch64\n" {
			t.Errorf("uname -m in a container: %q", got)
		}
		if got := docker.run("hello", "sh", "-c", "exit 7"); got != "status 7" {
			t.Errorf("exit 7 in a container: %q", got)
		}
		g.order(wire.OpPowerOff)
		g.ended(nil)
		g.machine.Close()
	}
}

// dockerAPI calls an engine.
type dockerAPI struct {
	t      *testing.T
	client *http.Client
}

// call makes a request and decodes the answer, unless into is nil.
func (d dockerAPI) call(method, path string, body, into any) []byte {
	d.t.Helper()
	var in bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&in).Encode(body); err != nil {
			d.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://docker"+path, &in)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := d.client.Do(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		d.t.Fatalf("%s %s: %s: %s (%v)", method, path, res.Status, text, err)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			d.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return text
}

// run runs a container to its end, and returns what it has written, or its status.
func (d dockerAPI) run(image string, command ...string) string {
	d.t.Helper()
	var made struct{ ID string }
	d.call("POST", "/containers/create", map[string]any{"Image": image, "Cmd": command, "Tty": true}, &made)
	d.call("POST", "/containers/"+made.ID+"/start", nil, nil)
	var status struct{ StatusCode int }
	d.call("POST", "/containers/"+made.ID+"/wait", nil, &status)
	output := d.call("GET", "/containers/"+made.ID+"/logs?stdout=1&stderr=1", nil, nil)
	d.call("DELETE", "/containers/"+made.ID, nil, nil)
	if status.StatusCode != 0 {
		return fmt.Sprintf("status %d", status.StatusCode)
	}
	return strings.ReplaceAll(string(output), "\r\n", "\n")
}
