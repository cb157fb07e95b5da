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
