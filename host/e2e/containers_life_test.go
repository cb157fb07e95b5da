//go:build linux

package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// TestSlowExport: a client that takes its time over an export holds up nobody.
func TestSlowExport(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	t.Cleanup(func() { c.exec("rm", "-f", "exported") })
	for _, running := range []bool{true, false} {
		c.ok(t, "run", "-d", "--name", "exported", "hello", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=32; echo >/done; exec sleep 1000000")
		eventually(t, "the file is written", func() bool { return c.exec("exec", "exported", "test", "-e", "/done").code == 0 })
		if !running {
			c.ok(t, "stop", "-t", "0", "exported")
		}
		out, err := api.ContainerExport(t.Context(), "exported", client.ContainerExportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(out)
		if _, err := in.Peek(512); err != nil { // it has begun
			t.Fatal(err)
		}
		if !running {
			c.ok(t, "start", "exported")
		}
		c.ok(t, "stop", "-t", "0", "exported")
		size := int64(0)
		for r := tar.NewReader(in); ; {
			head, err := r.Next()
			if err != nil {
				if err != io.EOF {
					t.Errorf("running %v: %v", running, err)
				}
				break
			}
			if head.Name == "big" {
				size = head.Size
			}
		}
		if size != 32<<20 {
			t.Errorf("running %v: exported %d bytes", running, size)
		}
		out.Close()
		c.ok(t, "rm", "exported")
	}
}

// TestLogOptions: logs are told apart by time, number and stream, carry what the
// options ask for, and are rotated.
func TestLogOptions(t *testing.T) {
	c := machine(t).engine(t)
	for _, driver := range []string{"json-file", "local"} {
		t.Run(driver, func(t *testing.T) {
			cfg := sh("for i in 1 2 3; do echo out $i; done; sleep 0.2; echo err >&2; echo -n end")
			cfg.Labels, cfg.Env = map[string]string{"role": "test"}, []string{"SHADE=grey"}
			b := newBox(t, c, "", cfg, container.HostConfig{LogConfig: container.LogConfig{Type: driver, Config: map[string]string{
				"labels": "role", "env-regex": "^SH", "tag": "{{.Name}}"}}})
			if got, _ := b.run(); got != "out 1\nout 2\nout 3\nerr\nend" && got != "out 1\nout 2\nout 3\nenderr\n" {
				t.Errorf("all: %q", got)
			}
			if got := b.logs(client.ContainerLogsOptions{ShowStderr: true}); got != "err\n" {
				t.Errorf("standard error: %q", got)
			}
			// The lines are counted before the streams are told apart.
			if got := b.logs(client.ContainerLogsOptions{ShowStdout: true, Tail: "2", Details: true}); got !=
				"SHADE=grey,role=test,tag="+b.inspect().Name[1:]+" end" {
				t.Errorf("details: %q", got)
			}
			stamp, _, _ := strings.Cut(b.logs(client.ContainerLogsOptions{ShowStderr: true, Timestamps: true}), " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil {
				t.Fatal(err)
			}
			until := at.Add(-50 * time.Millisecond).Format(time.RFC3339Nano)
			if got := b.logs(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Until: until}); got != "out 1\nout 2\nout 3\n" {
				t.Errorf("until: %q", got)
			}
			if got := b.logs(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Since: until}); strings.Contains(got, "out") || !strings.Contains(got, "err") {
				t.Errorf("since: %q", got)
			}
		})
	}
	b := newBox(t, c, "", sh("i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done"), container.HostConfig{LogConfig: container.LogConfig{
		Type: "json-file", Config: map[string]string{"max-size": "4k", "max-file": "2"}}})
	got, _ := b.run()
	if lines := strings.Split(strings.TrimSpace(got), "\n"); lines[len(lines)-1] != "line 399" || len(lines) >= 400 || len(lines) < 40 {
		t.Errorf("%d lines are left, the last %q", len(lines), lines[len(lines)-1])
	}
	quiet := newBox(t, c, "", sh("echo words"), container.HostConfig{LogConfig: container.LogConfig{Type: "none"}}).start()
	if _, err := c.ContainerLogs(t.Context(), quiet.id, client.ContainerLogsOptions{ShowStdout: true}); !errdefs.IsNotImplemented(err) {
		t.Errorf("logs of the driver none: %v", err)
	}
}

// TestWaitConditions: each condition comes when it should, with the exit code.
func TestWaitConditions(t *testing.T) {
	c := machine(t).engine(t)
	for _, cond := range []container.WaitCondition{"", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved} {
		t.Run("condition "+string(cond), func(t *testing.T) {
			b := newBox(t, c, "", container.Config{Cmd: []string{"sh", "-c", "read x; exit 9"}, OpenStdin: true},
				container.HostConfig{AutoRemove: cond == container.WaitConditionRemoved})
			a, err := c.ContainerAttach(t.Context(), b.id, client.ContainerAttachOptions{Stream: true, Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b.start()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			wait := c.ContainerWait(ctx, b.id, client.ContainerWaitOptions{Condition: cond})
			select {
			case r := <-wait.Result:
				t.Fatalf("it ended before the container did: %+v", r)
			case <-time.After(20 * time.Millisecond):
			}
			io.WriteString(a.Conn, "\n")
			select {
			case err := <-wait.Error:
				t.Error(err)
			case r := <-wait.Result:
				if r.StatusCode != 9 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// TestAttachStreams: the detach keys end an attachment and not the container, and
// standard input that is for one ends with the one.
func TestAttachStreams(t *testing.T) {
	c := machine(t).engine(t)
	b := newBox(t, c, "", container.Config{Cmd: []string{"cat"}, OpenStdin: true, Tty: true}, container.HostConfig{})
	a, err := c.ContainerAttach(t.Context(), b.id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, DetachKeys: "ctrl-x,q"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b.start()
	io.WriteString(a.Conn, "words\n")
	if line, err := a.Reader.ReadString('\n'); err != nil || line != "words\r\n" {
		t.Errorf("before the keys: %q, %v", line, err)
	}
	io.WriteString(a.Conn, "\x18q")
	if _, err := io.ReadAll(a.Reader); err != nil {
		t.Error(err)
	}
	if !b.inspect().State.Running {
		t.Error("the detach keys ended the container")
	}
	once := newBox(t, c, "", container.Config{Cmd: []string{"wc", "-c"}, OpenStdin: true, StdinOnce: true}, container.HostConfig{})
	if a, err = c.ContainerAttach(t.Context(), once.id, client.ContainerAttachOptions{Stream: true, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(a.Conn, "12345")
	a.CloseWrite()
	once.prints("5")
	a.Close()
}

// names lists what a tar stream holds.
func names(t *testing.T, r io.Reader) []string {
	t.Helper()
	var list []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h.Name)
	}
}

// oneFile is a tar stream of one file.
func oneFile(t *testing.T, name, content string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Uid: 1, Gid: 2, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = io.WriteString(w, content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestArchives: what is copied, under which names, and whose it is.
func TestArchives(t *testing.T) {
	c := machine(t).engine(t)
	cfg := sh("mkdir -p /d/e && echo x >/d/e/f && ln -s e /d/link && ln -s /nowhere /d/dead && exec sleep 100000")
	cfg.User = "0"
	b := newBox(t, c, "", cfg, container.HostConfig{}).start()
	eventually(t, "the files are there", func() bool { _, code := b.exec(client.ExecCreateOptions{}, "test", "-L", "/d/dead"); return code == 0 })
	for path, want := range map[string]string{
		"/d/e": "e/ e/f", "/d/e/": "e/ e/f", "/d/e/.": "./ ./f", "d/e/f": "f", "/d/link": "link", "/d/link/": "link/ link/f", "/d/dead": "dead",
	} {
		r, err := c.CopyFromContainer(t.Context(), b.id, client.CopyFromContainerOptions{SourcePath: path})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := strings.Join(names(t, r.Content), " "); got != want {
			t.Errorf("%s holds %s, want %s", path, got, want)
		}
		r.Content.Close()
	}
	put := func(o client.CopyToContainerOptions) error {
		_, err := c.CopyToContainer(t.Context(), b.id, o)
		return err
	}
	if err := put(client.CopyToContainerOptions{DestinationPath: "/d/link", Content: oneFile(t, "new", "words")}); err != nil {
		t.Error(err)
	}
	if err := put(client.CopyToContainerOptions{DestinationPath: "/d", Content: oneFile(t, "mine", "words"), CopyUIDGID: true}); err != nil {
		t.Error(err)
	}
	b.sees("cat /d/e/new; stat -c '%u:%g %a' /d/e/new /d/mine", "words1:2 640\n0:0 640")
	for want, o := range map[string]client.CopyToContainerOptions{
		"Could not find the file /gone in container " + b.id: {DestinationPath: "/gone", Content: oneFile(t, "x", "")},
		"not a directory":                  {DestinationPath: "/d/e/f", Content: oneFile(t, "x", "")},
		"cannot overwrite directory \"e\"": {DestinationPath: "/d", Content: oneFile(t, "e", "")},
	} {
		if err := put(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", o.DestinationPath, err, want)
		}
	}
	x, err := c.ContainerExport(t.Context(), b.id, client.ContainerExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if list := names(t, x); !slices.Contains(list, "d/e/f") || slices.Contains(list, "proc/1/") {
		t.Errorf("the export holds %d names", len(list))
	}
	x.Close()
	d, err := c.ContainerDiff(t.Context(), b.id, client.ContainerDiffOptions{})
	if err != nil || !slices.Contains(d.Changes, container.FilesystemChange{Kind: container.ChangeAdd, Path: "/d/e/f"}) {
		t.Errorf("changes: %+v, %v", d.Changes, err)
	}
}

// TestHealthIntervals: checks are frequent until the first success, and a failing
// container is called so.
func TestHealthIntervals(t *testing.T) {
	c := machine(t).engine(t)
	cfg := sh("sleep 100000")
	cfg.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", "echo checked; echo x >>/n; test $(wc -l </n) -ge 3"},
		Interval: time.Hour, StartInterval: 100 * time.Millisecond, StartPeriod: time.Hour, Retries: 1}
	b := newBox(t, c, "", cfg, container.HostConfig{}).start()
	eventually(t, "it is healthy", func() bool { return b.inspect().State.Health.Status == container.Healthy })
	if h := b.inspect().State.Health; h.FailingStreak != 0 || len(h.Log) != 3 || h.Log[0].ExitCode != 1 || h.Log[2].Output != "checked\n" {
		t.Errorf("health: %+v", h)
	}
	cfg.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "sh", "-c", "echo slow; sleep 100"}, Interval: 100 * time.Millisecond,
		Timeout: 200 * time.Millisecond, Retries: 1}
	b = newBox(t, c, "", cfg, container.HostConfig{}).start()
	eventually(t, "it is unhealthy", func() bool { return b.inspect().State.Health.Status == container.Unhealthy })
	if h := b.inspect().State.Health; h.Log[0].ExitCode != -1 || !strings.HasPrefix(h.Log[0].Output, "Health check exceeded timeout (200ms)") {
		t.Errorf("health: %+v", h.Log[0])
	}
	list, err := c.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("health", "unhealthy").Add("id", b.id)})
	if err != nil || len(list.Items) != 1 || !strings.HasSuffix(list.Items[0].Status, "(unhealthy)") {
		t.Errorf("list: %+v, %v", list.Items, err)
	}
}

// TestStats: one report has, or has not, something to compare with.
func TestStats(t *testing.T) {
	c := machine(t).engine(t)
	b := newBox(t, c, "", container.Config{}, container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}).start()
	for _, previous := range []bool{false, true} {
		r, err := c.ContainerStats(t.Context(), b.id, client.ContainerStatsOptions{IncludePreviousSample: previous})
		if err != nil {
			t.Fatal(err)
		}
		var s container.StatsResponse
		dec := json.NewDecoder(r.Body)
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
		if s.ID != b.id || s.MemoryStats.Limit != 64<<20 || s.MemoryStats.Usage == 0 || s.PidsStats.Current != 1 || s.CPUStats.OnlineCPUs == 0 ||
			s.PreRead.IsZero() == previous || len(s.Networks) != 1 || s.MemoryStats.Stats["anon"] == 0 {
			t.Errorf("with the previous sample %v: %+v", previous, s)
		}
		if err := dec.Decode(&s); !errors.Is(err, io.EOF) {
			t.Errorf("a second report: %v", err)
		}
		r.Body.Close()
	}
}

// TestRestartPolicyLimit: on-failure gives up, and counts.
func TestRestartPolicyLimit(t *testing.T) {
	c := machine(t).engine(t)
	b := newBox(t, c, "", sh("exit 3"), container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}}).start()
	eventually(t, "it is given up", func() bool { return b.inspect().State.Status == container.StateExited })
	if i := b.inspect(); i.RestartCount != 2 || i.State.ExitCode != 3 {
		t.Errorf("restarted %d times, exit code %d", i.RestartCount, i.State.ExitCode)
	}
	p, err := c.ContainerPrune(t.Context(), client.ContainerPruneOptions{Filters: make(client.Filters).Add("until", "1h")})
	if err != nil || len(p.Report.ContainersDeleted) != 0 {
		t.Errorf("pruned what is younger than an hour: %+v, %v", p, err)
	}
	if _, err := c.ContainerTop(t.Context(), b.id, client.ContainerTopOptions{}); !errdefs.IsConflict(err) ||
		!strings.HasSuffix(err.Error(), fmt.Sprintf("container %s is not running", b.id)) {
		t.Errorf("top: %v", err)
	}
}
