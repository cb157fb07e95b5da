//go:build linux

package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/net/websocket"
)

// box is a container of one test, seen through the Go library.
type box struct {
	t  testing.TB
	c  *client.Client
	id string
}

// newBox makes a container that goes with the test. The image is hello unless cfg
// names another; without a command it sleeps.
func newBox(t testing.TB, c *client.Client, name string, cfg container.Config, hc container.HostConfig) *box {
	t.Helper()
	if cfg.Image == "" {
		cfg.Image = "hello"
	}
	if cfg.Cmd == nil {
		cfg.Cmd = []string{"sleep", "100000"}
	}
	r, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Name: name, Config: &cfg, HostConfig: &hc})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = c.ContainerRemove(context.Background(), r.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	})
	return &box{t, c, r.ID}
}

func (b *box) start() *box {
	b.t.Helper()
	if _, err := b.c.ContainerStart(b.t.Context(), b.id, client.ContainerStartOptions{}); err != nil {
		b.t.Fatal(err)
	}
	return b
}

// run starts the container, waits for its end and returns what it printed on both
// streams, and its exit code.
func (b *box) run() (string, int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	wait := b.c.ContainerWait(ctx, b.id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	b.start()
	code := 0
	select {
	case err := <-wait.Error:
		b.t.Fatal(err)
	case r := <-wait.Result:
		code = int(r.StatusCode)
	}
	return b.logs(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}), code
}

// prints fails the test unless the container prints want, trimmed, and succeeds.
func (b *box) prints(want string) {
	b.t.Helper()
	if got, code := b.run(); code != 0 || strings.TrimSpace(strings.ReplaceAll(got, "\r", "")) != want {
		b.t.Errorf("exit code %d, printed %q; want 0 and %q", code, got, want)
	}
}

func (b *box) logs(o client.ContainerLogsOptions) string {
	b.t.Helper()
	r, err := b.c.ContainerLogs(b.t.Context(), b.id, o)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	if b.inspect().Config.Tty {
		_, err = io.Copy(&out, r)
	} else {
		_, err = stdcopy.StdCopy(&out, &out, r)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

func (b *box) inspect() container.InspectResponse {
	b.t.Helper()
	r, err := b.c.ContainerInspect(b.t.Context(), b.id, client.ContainerInspectOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Container
}

// failsToStart fails the test unless the start fails with words in its message.
func (b *box) failsToStart(words string) {
	b.t.Helper()
	_, err := b.c.ContainerStart(b.t.Context(), b.id, client.ContainerStartOptions{})
	if err == nil || !strings.Contains(err.Error(), words) {
		b.t.Errorf("the start: %v, want an error with %q", err, words)
	}
}

// sh is a container's configuration that runs a script.
func sh(script string) container.Config { return container.Config{Cmd: []string{"sh", "-c", script}} }

// TestImageMounts: an image's files, or some of them, are there to read, and go
// with the container.
func TestImageMounts(t *testing.T) {
	c := machine(t).engine(t)
	img := func(sub string) container.HostConfig {
		return container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeImage, Source: "hello", Target: "/img",
			ImageOptions: &mount.ImageOptions{Subpath: sub}}}}
	}
	b := newBox(t, c, "", sh("test -e /img/bin/busybox && ! touch /img/x 2>/dev/null && echo ok"), img(""))
	b.prints("ok")
	if m := b.inspect().Mounts; len(m) != 1 || m[0].Type != mount.TypeImage || m[0].Name != "hello" || m[0].RW {
		t.Errorf("inspect shows %+v", m)
	}
	b.prints("ok\nok") // again: the log has both
	newBox(t, c, "", sh("test -e /img/busybox && echo ok"), img("bin")).prints("ok")
	newBox(t, c, "", sh("true"), img("nowhere")).failsToStart("cannot access path ")
	if _, err := c.ContainerRemove(t.Context(), b.id, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if got := machine(t).berth().ok(t, "ssh", "--", "mount | grep -c "+b.id+" || true"); got != "0" {
		t.Errorf("%s mounts of the container are left", got)
	}
}

// TestLinks: a linked container is found by its alias.
func TestLinks(t *testing.T) {
	c := machine(t).engine(t)
	newBox(t, c, "link-db", container.Config{}, container.HostConfig{}).start()
	newBox(t, c, "", sh("ping -c 1 -W 20 store >/dev/null && echo ok"), container.HostConfig{Links: []string{"link-db:store"}}).prints("ok")
}

// TestTerminalOfItsOwn: a terminal is the container's first, and exec's the next.
func TestTerminalOfItsOwn(t *testing.T) {
	c := machine(t).engine(t)
	cfg := sh("tty; ls -l /proc/self/fd/0 | sed 's/.*-> //'")
	cfg.Tty = true
	newBox(t, c, "", cfg, container.HostConfig{}).prints("/dev/pts/0\n/dev/pts/0")
}

// TestAttachWebsocket: a websocket carries a container's streams from the host.
func TestAttachWebsocket(t *testing.T) {
	h := machine(t)
	c := h.engine(t)
	b := newBox(t, c, "", container.Config{Cmd: []string{"sh", "-c", "read x; echo got $x"}, OpenStdin: true}, container.HostConfig{})
	conn, err := net.Dial("unix", h.status(t).DockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws://docker/containers/"+b.id+"/attach/ws?stream=1&stdin=1&stdout=1", "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	b.start()
	io.WriteString(ws, "words\n")
	if got, err := io.ReadAll(ws); err != nil || string(got) != "got words\n" {
		t.Errorf("%q, %v", got, err)
	}
}
