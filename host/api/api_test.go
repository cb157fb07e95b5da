package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/host/api"
)

// backend answers what a test says.
type backend struct {
	status api.Status
	events []api.Event
	stop   func(context.Context) (api.Status, error)

	usage   api.Usage
	err     error  // of Usage, StopContainer, Pause and Resume
	stopped string // the container
}

func (b *backend) Status() api.Status { return b.status }
func (b *backend) Cancel()            {}
func (b *backend) Follow(_ context.Context, emit func(api.Event) error) error {
	for _, e := range b.events {
		if err := emit(e); err != nil {
			return err
		}
	}
	return nil
}
func (b *backend) Stop(ctx context.Context) (api.Status, error) { return b.stop(ctx) }
func (b *backend) Logs(_ context.Context, q api.LogQuery, w io.Writer) error {
	_, err := io.WriteString(w, q.Source+"\n")
	return err
}

func (b *backend) Watch(_ context.Context, emit func(api.Snapshot) error) error {
	for range 2 {
		if err := emit(api.Snapshot{Status: b.status, Containers: []api.Container{{Name: "web"}}}); err != nil {
			return err
		}
	}
	return nil
}
func (b *backend) Pause(context.Context) error {
	b.status.Paused = b.err == nil
	return b.err
}
func (b *backend) Resume(context.Context) error {
	b.status.Paused = false
	return b.err
}
func (b *backend) Save(context.Context) (api.Status, error) {
	return api.Status{Saved: time.Unix(1, 0)}, b.err
}
func (b *backend) Usage(context.Context) (api.Usage, error) { return b.usage, b.err }
func (b *backend) StopContainer(_ context.Context, id string) error {
	b.stopped = id
	return b.err
}

func serve(t *testing.T, h http.Handler) *api.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return api.NewClient(path)
}

func TestStatus(t *testing.T) {
	c := serve(t, api.NewHandler(&backend{status: api.Status{Name: "n", State: api.Running, PID: 7}}))
	if s, err := c.Status(t.Context()); err != nil || s.Name != "n" || s.State != api.Running || s.PID != 7 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestNoDaemon(t *testing.T) {
	c := api.NewClient(filepath.Join(t.TempDir(), "none"))
	if _, err := c.Status(t.Context()); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if _, err := c.Follow(t.Context(), func(api.Phase) {}); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestFollow(t *testing.T) {
	b := &backend{events: []api.Event{{Phase: &api.Phase{Name: "one"}}, {Phase: &api.Phase{Name: "one", Done: true}}, {End: &api.Status{State: api.Failed, LastError: "why"}}}}
	c := serve(t, api.NewHandler(b))
	var phases []api.Phase
	s, err := c.Follow(t.Context(), func(p api.Phase) { phases = append(phases, p) })
	if err != nil || s.LastError != "why" || len(phases) != 2 || !phases[1].Done {
		t.Errorf("%+v, %+v, %v", s, phases, err)
	}
	b.events = b.events[:2] // the daemon dies
	if _, err := c.Follow(t.Context(), func(api.Phase) {}); !errors.Is(err, api.ErrEnded) {
		t.Errorf("a stream without an end: %v", err)
	}
}

func TestStop(t *testing.T) {
	b := &backend{stop: func(ctx context.Context) (api.Status, error) {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > 3*time.Second {
			t.Errorf("deadline %v %v, want 3 s", d, ok)
		}
		return api.Status{State: api.Stopped}, nil
	}}
	c := serve(t, api.NewHandler(b))
	if s, err := c.Stop(t.Context(), 3*time.Second); err != nil || s.State != api.Stopped {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.Stop(t.Context(), -time.Second); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a negative timeout: %v", err)
	}
	b.stop = func(context.Context) (api.Status, error) { return api.Status{}, errors.New("it is stuck") }
	if _, err := c.Stop(t.Context(), time.Second); err == nil || err.Error() != "it is stuck" {
		t.Errorf("%v", err)
	}
}

func TestWatch(t *testing.T) {
	c := serve(t, api.NewHandler(&backend{status: api.Status{State: api.Running}}))
	var seen []api.Snapshot
	if err := c.Watch(t.Context(), func(s api.Snapshot) { seen = append(seen, s) }); !errors.Is(err, api.ErrEnded) {
		t.Errorf("%v", err)
	}
	if len(seen) != 2 || seen[1].Status.State != api.Running || seen[1].Containers[0].Name != "web" {
		t.Errorf("%+v", seen)
	}
}

func TestUsage(t *testing.T) {
	b := &backend{usage: api.Usage{Up: 10 * time.Second, Busy: time.Second, CPUs: 2, MemoryUsed: 1 << 30}}
	c := serve(t, api.NewHandler(b))
	u, err := c.Usage(t.Context())
	if err != nil || u != b.usage {
		t.Errorf("%+v, %v", u, err)
	}
	for name, test := range map[string]struct {
		earlier api.Usage
		want    float64
	}{
		"a quarter":      {api.Usage{Up: 8 * time.Second, Busy: time.Second / 2}, 0.25},
		"another boot":   {api.Usage{Up: 8 * time.Minute, Busy: time.Minute}, 0},
		"the same":       {u, 0},
		"more than real": {api.Usage{Up: 10*time.Second - 1}, 2},
	} {
		if got := u.CPUSince(test.earlier); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	b.err = errors.New("the machine is not up")
	if _, err := c.Usage(t.Context()); err == nil || err.Error() != "the machine is not up" {
		t.Errorf("%v", err)
	}
}

func TestPause(t *testing.T) {
	b := &backend{}
	c := serve(t, api.NewHandler(b))
	if err := c.Pause(t.Context()); err != nil || !b.status.Paused {
		t.Errorf("Pause: %v, %+v", err, b.status)
	}
	if s, err := c.Status(t.Context()); err != nil || !s.Paused {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := c.Save(t.Context()); err != nil || !s.Saved.Equal(time.Unix(1, 0)) {
		t.Errorf("Save: %v, %+v", err, s)
	}
	if err := c.Resume(t.Context()); err != nil || b.status.Paused {
		t.Errorf("Resume: %v, %+v", err, b.status)
	}
	b.err = errors.New("this one cannot")
	if err := c.Pause(t.Context()); err == nil || err.Error() != b.err.Error() {
		t.Errorf("Pause of a machine that cannot: %v", err)
	}
}

func TestStopContainer(t *testing.T) {
	b := &backend{}
	c := serve(t, api.NewHandler(b))
	if err := c.StopContainer(t.Context(), "a/../b"); err != nil || b.stopped != "a/../b" {
		t.Errorf("%v, stopped %q", err, b.stopped)
	}
	b.err = errors.New("No such container: x")
	if err := c.StopContainer(t.Context(), "x"); err == nil || err.Error() != b.err.Error() {
		t.Errorf("%v", err)
	}
}

func TestLogs(t *testing.T) {
	c := serve(t, api.NewHandler(&backend{}))
	var out strings.Builder
	if err := c.Logs(t.Context(), api.LogQuery{Source: api.LogConsole}, &out); err != nil || out.String() != "console\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := c.Logs(t.Context(), api.LogQuery{Source: "/etc/passwd"}, &out); err == nil {
		t.Error("any source is served")
	}
}

// TestStrangers: answers that are no daemon's end in an error, not in a hang or a panic.
func TestStrangers(t *testing.T) {
	for name, body := range map[string]string{"text": "hello", "empty": "", "half": `{"name":`, "list": "[]"} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
			if _, err := c.Status(t.Context()); err == nil {
				t.Error("Status succeeded")
			}
			if _, err := c.Follow(t.Context(), func(api.Phase) {}); err == nil {
				t.Error("Follow succeeded")
			}
		})
	}
	c := serve(t, http.NotFoundHandler())
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}
