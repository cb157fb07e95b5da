package dockerapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/dockerapi"
	"github.com/berthvm/berth/guest/engine/enginetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/berthvm/berth/guest/engine/enginetest.(*process).run"),
		goleak.IgnoreAnyFunction("github.com/berthvm/berth/guest/engine/enginetest.(*process).program"))
}

var ctx = context.Background()

// handler returns the API of an engine in a world of fakes.
func handler(t testing.TB) (http.Handler, *enginetest.World) {
	t.Helper()
	w := enginetest.New(t)
	e := w.Engine()
	about := system.VersionResponse{Version: "1.2.3"}
	about.Platform.Name = "Berth 1.2.3"
	api := dockerapi.New(dockerapi.Config{Log: slog.New(slog.DiscardHandler), Engine: e, Images: enginetest.Images(t, e),
		Networks: enginetest.Networks(t, e), Volumes: enginetest.Volumes(t, e), Builds: enginetest.Builds(t, e), Version: "1.2.3", About: about, Info: system.Info{Name: "machine"}})
	return api, w
}

// server serves the API over a Unix socket.
func server(t testing.TB) (*client.Client, string, *enginetest.World) {
	t.Helper()
	api, w := handler(t)
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: api, ReadHeaderTimeout: 5 * time.Second}}
	srv.Start()
	t.Cleanup(srv.Close)
	c, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, socket, w
}

// raw sends a request as it is and returns the status and the body.
func raw(t *testing.T, socket, request string) (int, string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(conn, request) // refused before its end, maybe: the answer tells
	return response(t, conn)
}

func create(t *testing.T, c *client.Client, name string, hc *apicontainer.HostConfig, tty bool, cmd ...string) string {
	t.Helper()
	r, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name, HostConfig: hc,
		Config: &apicontainer.Config{Image: "img", Cmd: cmd, OpenStdin: true, StdinOnce: true, AttachStdin: true, Tty: tty}})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

func TestPingAndVersion(t *testing.T) {
	c, _, _ := server(t)
	p, err := c.Ping(ctx, client.PingOptions{})
	if err != nil || p.OSType != "linux" || p.APIVersion != dockerapi.MaxVersion || p.SwarmStatus == nil || p.SwarmStatus.NodeState != "inactive" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil || v.Version != "1.2.3" || v.Os != "linux" {
		t.Errorf("version: %+v, %v", v, err)
	}
	if _, err := c.Info(ctx, client.InfoOptions{}); err != nil {
		t.Errorf("info: %v", err)
	}
}

func TestVersions(t *testing.T) {
	_, socket, _ := server(t)
	for path, want := range map[string]int{
		"/v1.40/version": 200, "/v1.56/version": 200, "/version": 200, "/v1.39/version": 400, "/v1.57/version": 400,
		"/v1.999999999999999999999/version": 400, "/v2.0/version": 400, "/v1/version": 400, "/v1.40.1/version": 200, "/v.../version": 400,
		"/vx/version": 404, "/v/version": 404, "/v1.40": 404, "/v1.40/": 404, "/": 404, "/v9.9/nothing": 404, "/version?a=%zz": 400,
		"//": 301, "//version": 301, "/version/": 404, "/v1.41//containers/json": 301, "/containers/./json": 301, "/containers/json/": 404,
		"/networks/": 200, "/volumes/": 404, "/images/a%2F%2Fb/json": 301, "/containers/../../etc/passwd/json": 301,
		"/v1.41/containers/json": 200, "/containers": 404, "/_ping": 200, "/v1.44/_ping": 200,
	} {
		if got, body := raw(t, socket, "GET "+path+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"); got != want {
			t.Errorf("%s: %d %s, want %d", path, got, body, want)
		}
	}
	api, _ := handler(t)
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"HEAD", "/_ping", 200}, {"HEAD", "/version", 404}, {"OPTIONS", "/_ping", 200}, {"OPTIONS", "/v1.41/what/ever", 200}, {"OPTIONS", "/v1.1/_ping", 400},
		{"TRACE", "/version", 404}, {"DELETE", "/containers/", 400}, {"DELETE", "/containers/a/", 404}, {"DELETE", "/nodes/", 404}, {"POST", "/swarm", 404},
	} {
		r := httptest.NewRecorder()
		if api.ServeHTTP(r, httptest.NewRequest(c.method, c.path, nil)); r.Code != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, r.Code, r.Body, c.want)
		}
	}
	r := httptest.NewRecorder()
	api.ServeHTTP(r, httptest.NewRequest("GET", "/containers//json?all=1&limit=2", nil))
	if to := r.Header().Get("Location"); to != "/containers/json?all=1&limit=2" {
		t.Errorf("two slashes lead to %q", to)
	}
	if _, body := raw(t, socket, "GET /v1.23/version HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(body, "client version 1.23 is too old") {
		t.Errorf("a client that knows no JSON is told: %s", body)
	}
	_, body := raw(t, socket, "GET /v1.24/version HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
	if !strings.Contains(body, "client version 1.24 is too old. Minimum supported API version is 1.40") {
		t.Errorf("an old client is told: %s", body)
	}
}

func TestRunAttached(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty=%v", tty), func(t *testing.T) {
			c, _, w := server(t)
			id := create(t, c, "", &apicontainer.HostConfig{AutoRemove: true}, tty, "lines")
			h, err := c.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			wait := c.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: apicontainer.WaitConditionRemoved})
			if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(h.Conn, "hello\n")
			if tty {
				io.WriteString(h.Conn, "\x04") // the terminal's end of input
			} else {
				h.CloseWrite()
			}
			var out, stderr bytes.Buffer
			if tty {
				io.Copy(&out, h.Reader)
			} else if _, err := stdcopy.StdCopy(&out, &stderr, h.Reader); err != nil {
				t.Error(err)
			}
			if !strings.Contains(out.String(), ">hello") {
				t.Errorf("printed %q", out.String())
			}
			select {
			case r := <-wait.Result:
				if r.StatusCode != 0 {
					t.Errorf("exit code %d", r.StatusCode)
				}
			case err := <-wait.Error:
				t.Error(err)
			case <-time.After(10 * time.Second):
				t.Fatal("wait does not end")
			}
			left := w.Leftovers() // the disk is cleaned in the background
			for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); left = w.Leftovers() {
				time.Sleep(5 * time.Millisecond)
			}
			if len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestLogsAndExec(t *testing.T) {
	c, socket, _ := server(t)
	id := create(t, c, "web", nil, false, "lines")
	if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	h, err := c.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	follow, err := c.ContainerLogs(ctx, "web", client.ContainerLogsOptions{ShowStdout: true, Follow: true, Timestamps: true})
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	io.WriteString(h.Conn, "one\ntwo\n")

	x, err := c.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"warn", "careful"}, AttachStdout: true, AttachStderr: true,
		DetachKeys: "ctrl-a,x"})
	if err != nil {
		t.Fatal(err)
	}
	_, body := raw(t, socket, "GET /exec/"+x.ID+"/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
	if want := `"ExitCode":null,"ProcessConfig":{"tty":false,"entrypoint":"warn","arguments":["careful"],"privileged":false},` +
		`"OpenStdin":false,"OpenStderr":true,"OpenStdout":true,"CanRemove":false,"ContainerID":"` + id + `","DetachKeys":"AXg=","Pid":0}`; !strings.Contains(body, want) {
		t.Errorf("exec before its start: %s\nwant %s", body, want)
	}
	a, err := c.ExecAttach(ctx, x.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &stderr, a.Reader); err != nil || stderr.String() != "careful\n" || out.Len() > 0 {
		t.Errorf("exec printed %q and %q, %v", out.String(), stderr.String(), err)
	}
	a.Close()
	if i, err := c.ExecInspect(ctx, x.ID, client.ExecInspectOptions{}); err != nil || i.Running || i.ExitCode != 0 {
		t.Errorf("exec: %+v, %v", i, err)
	}
	h.CloseWrite()
	out.Reset()
	if _, err := stdcopy.StdCopy(&out, io.Discard, follow); err != nil {
		t.Error(err)
	}
	h.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[1], "Z >two") {
		t.Errorf("followed %q", out.String())
	}
}

// TestClientThatLeaves: whoever was attached and went away holds nothing, though
// the container runs on and prints nothing.
func TestClientThatLeaves(t *testing.T) {
	c, _, _ := server(t)
	id := create(t, c, "left", nil, false, "sleep")
	if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for _, stdin := range []bool{false, true} {
		for _, half := range []bool{false, true} {
			h, err := c.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: stdin, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			if half {
				h.CloseWrite()
				time.Sleep(20 * time.Millisecond)
			}
			h.Close()
		}
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

func TestErrors(t *testing.T) {
	c, socket, _ := server(t)
	if _, err := c.ContainerInspect(ctx, "nothere", client.ContainerInspectOptions{}); !errdefs.IsNotFound(err) ||
		!strings.Contains(err.Error(), "No such container: nothere") {
		t.Errorf("inspect: %v", err)
	}
	if _, body := raw(t, socket, "GET /containers/a%3C&b%3E/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"); body != `{"message":"No such container: a<&b>"}`+"\n" {
		t.Errorf("characters are written as %s", body)
	}
	_, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &apicontainer.Config{Image: "nothere"}})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "No such image: nothere:latest") {
		t.Errorf("create: %v", err)
	}
	id := create(t, c, "dup", nil, false, "sleep")
	_, err = c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "dup", Config: &apicontainer.Config{Image: "img"}})
	if !errdefs.IsConflict(err) {
		t.Errorf("name: %v", err)
	}
	if _, err := c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("kill: %v", err)
	}
	if _, err := c.ServiceList(ctx, client.ServiceListOptions{}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "This node is not a swarm manager") {
		t.Errorf("swarm: %v", err)
	}
	if p, err := c.PluginList(ctx, client.PluginListOptions{}); err != nil || len(p.Items) != 0 {
		t.Errorf("plugins: %+v, %v", p, err)
	}
	if _, err := c.ContainerLogs(ctx, id, client.ContainerLogsOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("logs of no stream: %v", err)
	}
}

// TestLoadOfNothing: what is wrong with an archive is told in the progress.
func TestLoadOfNothing(t *testing.T) {
	_, socket, _ := server(t)
	code, body := raw(t, socket, "POST /images/load HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: 3\r\n\r\nabc")
	if code != 200 || !strings.Contains(body, `"errorDetail":{"message":`) || !strings.Contains(body, `"error":`) {
		t.Errorf("%d %s", code, body)
	}
}

func TestNotModified(t *testing.T) {
	c, socket, _ := server(t)
	id := create(t, c, "nm", nil, false, "sleep")
	for _, step := range []struct {
		op   string
		want int
	}{{"start", 204}, {"start", 304}, {"stop", 204}, {"stop", 304}} {
		got, _ := raw(t, socket, "POST /containers/"+id+"/"+step.op+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		if got != step.want {
			t.Errorf("%s: %d, want %d", step.op, got, step.want)
		}
	}
}

// TestBadBodies sends what no client should.
func TestBadBodies(t *testing.T) {
	_, socket, w := server(t)
	post := func(path, kind, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, kind, len(body), body)
	}
	const js = "application/json"
	for what, c := range map[string]struct {
		request string
		code    int
		text    string
	}{
		"empty":               {"POST /containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 400, "EOF"},
		"not JSON":            {post("/containers/create", js, "hello"), 400, "invalid JSON"},
		"cut":                 {post("/containers/create", js, `{"Image":"img"`), 400, "invalid JSON"},
		"two":                 {post("/containers/create", js, `{"Image":"img"}{}`), 400, "unexpected content after JSON"},
		"wrong type":          {post("/containers/create", js, `{"Image":5}`), 400, "invalid JSON"},
		"list":                {post("/containers/create", js, `[]`), 400, "invalid JSON"},
		"null":                {post("/containers/create", js, `null`), 400, "config cannot be empty"},
		"no type":             {post("/containers/create", "", `{}`), 400, "Content-Type"},
		"other type":          {post("/containers/create", "text/plain", `{}`), 400, "Content-Type"},
		"deep":                {post("/containers/create", js, strings.Repeat(`{"a":`, 20000)), 400, "invalid JSON"},
		"huge":                {post("/containers/create", js, `{"Image":"`+strings.Repeat("x", 5<<20)+`"}`), 400, "too large"},
		"bad filters":         {"GET /containers/json?filters=%7B HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "invalid filter"},
		"odd filter":          {"GET /containers/json?filters=%7B%22x%22%3A%5B%22y%22%5D%7D HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "invalid filter 'x'"},
		"bad limit":           {"GET /containers/json?limit=many HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "limit"},
		"bad since":           {"GET /events?since=then HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "since"},
		"bad platform":        {post("/containers/create?platform=%7B", js, `{"Image":"img"}`), 400, "platform"},
		"bad wait":            {"POST /containers/x/wait?condition=never HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 400, "condition"},
		"a volume of a swarm": {post("/volumes/create", js, `{"Name":"x","ClusterVolumeSpec":{}}`), 503, "not a swarm manager"},
		"update of a volume":  {strings.Replace(post("/volumes/x?version=1", js, `{}`), "POST", "PUT", 1), 503, "volume update only valid for cluster volumes, but swarm is unavailable"},
		"not a swarm's":       {post("/services/create", js, `{"Name":5}`), 400, "invalid JSON"},
		"update of what":      {post("/services/x/update", js, `{}`), 400, "invalid service version ''"},
		"update of a secret":  {post("/secrets/x/update?version=3", js, `{}`), 503, "This node is not a swarm manager"},
		"leave":               {post("/swarm/leave", js, ``), 503, "This node is not part of a swarm"},
		"init":                {post("/swarm/init", js, `{}`), 503, "swarm mode is not supported"},
		"logs of nothing":     {"GET /services/x/logs HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "at least one of 'stdout' or 'stderr'"},
		"filter of plugins":   {"GET /plugins?filters=%7B%22x%22%3A%5B%22y%22%5D%7D HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 400, "invalid filter 'x'"},
		"no such plugin":      {"DELETE /plugins/a/b:c HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 404, `a/b:c\" not found`},
		"enable":              {post("/plugins/x/enable", js, ``), 400, "timeout"},
		"pull of a plugin":    {post("/plugins/pull?remote=x", js, `[]`), 501, "not supported"},
		"pull of what":        {post("/plugins/pull", js, `[]`), 400, "invalid reference format"},
		"checkpoints":         {"GET /containers/x/checkpoints HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 501, "experimental"},
		"session":             {post("/session", js, ``), 400, "no upgrade proto in request"},
		"session of what":     {"POST /session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h3\r\nContent-Length: 0\r\n\r\n", 400, "protocol h3 not supported"},
		"gRPC of what":        {post("/grpc", js, ``), 400, "no upgrade proto in request"},
		"method":              {"PATCH /version HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 404, "page not found"},
	} {
		code, body := raw(t, socket, c.request)
		if code != c.code || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %.200s, want %d with %q", what, code, body, c.code, c.text)
		}
		var e struct{ Message string }
		if err := json.Unmarshal([]byte(body), &e); err != nil || e.Message == "" || strings.Contains(strings.TrimSpace(e.Message), "\n") {
			t.Errorf("%s: the answer is not one clear line: %q", what, body)
		}
	}
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestEveryFieldWrong puts values of the wrong kind in every field of a create
// request in turn.
func TestEveryFieldWrong(t *testing.T) {
	_, socket, _ := server(t)
	full, err := json.Marshal(apicontainer.CreateRequest{Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(full, &fields); err != nil {
		t.Fatal(err)
	}
	wrong := []string{`-1`, `"\u0000"`, `[1]`, `{"a":{"b":[]}}`, `1e400`, `true`, `99999999999999999999`}
	try := func(body string) {
		code, answer := raw(t, socket, fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		if code >= 500 {
			t.Errorf("%s: %d %s", body, code, answer)
		}
	}
	for name := range fields {
		for _, v := range wrong {
			try(fmt.Sprintf(`{"Image":"img",%q:%s}`, name, v))
		}
	}
	for name := range fields["HostConfig"].(map[string]any) {
		for _, v := range wrong {
			try(fmt.Sprintf(`{"Image":"img","HostConfig":{%q:%s}}`, name, v))
		}
	}
}

func TestEventsStream(t *testing.T) {
	c, _, _ := server(t)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ev := c.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container").Add("event", "create", "destroy")})
	time.Sleep(50 * time.Millisecond) // the stream must have begun
	id := create(t, c, "evt", nil, false, "sleep")
	if _, err := c.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"create", "destroy"} {
		select {
		case m := <-ev.Messages:
			if string(m.Action) != want || m.Actor.ID != id {
				t.Errorf("got %+v, want %s", m, want)
			}
		case err := <-ev.Err:
			t.Fatal(err)
		case <-time.After(10 * time.Second):
			t.Fatalf("no event %s", want)
		}
	}
}

func TestStatsAndTop(t *testing.T) {
	c, _, _ := server(t)
	id := create(t, c, "st", nil, false, "sleep")
	if _, err := c.ContainerTop(ctx, id, client.ContainerTopOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("top of a container that does not run: %v", err)
	}
	if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := c.ContainerStats(ctx, id, client.ContainerStatsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Body.Close()
	var st apicontainer.StatsResponse
	if err := json.NewDecoder(s.Body).Decode(&st); err != nil || st.MemoryStats.Usage != 4096 {
		t.Errorf("stats %+v, %v", st, err)
	}
	top, err := c.ContainerTop(ctx, id, client.ContainerTopOptions{Arguments: []string{"-o", "pid,comm"}})
	if err != nil || len(top.Processes) != 1 || strings.Join(top.Titles, " ") != "PID COMMAND" {
		t.Errorf("top %+v, %v", top, err)
	}
}

func TestOldShapes(t *testing.T) {
	c, socket, _ := server(t)
	id := create(t, c, "old", nil, false, "sleep")
	get := func(path string) map[string]any {
		code, body := raw(t, socket, "GET "+path+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
		var v map[string]any
		if err := json.Unmarshal([]byte(body), &v); err != nil || code != 200 {
			t.Fatalf("%s: %d %s", path, code, body)
		}
		return v
	}
	settings := get("/v1.44/containers/" + id + "/json")["NetworkSettings"].(map[string]any)
	if _, ok := settings["IPAddress"]; !ok {
		t.Error("1.44 has no NetworkSettings.IPAddress")
	}
	settings = get("/v1.52/containers/" + id + "/json")["NetworkSettings"].(map[string]any)
	if _, ok := settings["IPAddress"]; ok {
		t.Error("1.52 has NetworkSettings.IPAddress")
	}
	if _, ok := get("/v1.44/system/df")["LayersSize"]; !ok {
		t.Error("1.44's df has no LayersSize")
	}
	if _, ok := get("/v1.52/system/df")["ImageUsage"]; !ok {
		t.Error("1.52's df has no ImageUsage")
	}
}
