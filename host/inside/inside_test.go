package inside

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/berthvm/berth/host/api"
)

// guest answers every question with the handler.
func guest(t testing.TB, h http.HandlerFunc) Guest {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return Guest{Dial: func(ctx context.Context, _ uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}}
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func TestContainers(t *testing.T) {
	g := guest(t, says(`[
		{"Id":"2","Names":["/web"],"Image":"nginx","State":"running","Ports":[
			{"IP":"0.0.0.0","PrivatePort":443,"PublicPort":8443,"Type":"tcp"},
			{"IP":"::","PrivatePort":443,"PublicPort":8443,"Type":"tcp"},
			{"PrivatePort":9000,"Type":"tcp"},
			{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]},
		{"Id":"1","Names":[],"Image":"x","State":"paused"}]`))
	list, err := g.Containers(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	want := []api.Port{{Host: 8080, Container: 80, Protocol: "tcp"}, {Host: 8443, Container: 443, Protocol: "tcp"}}
	if web := list[1]; web.Name != "web" || len(web.Ports) != 2 || web.Ports[0] != want[0] || web.Ports[1] != want[1] {
		t.Errorf("%+v", web)
	}
}

// TestHostile: no answer costs more than its limit, or more than an error.
func TestHostile(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"no JSON":   says("hello"),
		"an object": says("{}"),
		"endless":   func(w http.ResponseWriter, r *http.Request) { io.Copy(w, endless{}) },
		"a port of a million": says(
			`[{"Id":"1","Ports":[{"PublicPort":1000000}]}]`),
	} {
		if list, err := guest(t, h).Containers(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, list)
		}
	}
	many := "[" + strings.Repeat(`{"Id":"1"},`, 5000) + `{"Id":"1"}]`
	if list, err := guest(t, says(many)).Containers(t.Context()); err != nil || len(list) != 500 {
		t.Errorf("%d containers, %v", len(list), err)
	}
	if u, err := guest(t, says(`{"memoryTotal":1,"memoryAvailable":2}`)).Usage(t.Context()); err != nil || u.MemoryUsed != 0 {
		t.Errorf("%+v, %v", u, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '['
	}
	return len(p), nil
}

func TestErrors(t *testing.T) {
	g := guest(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		if r.URL.Path == "/containers/a b/stop" {
			io.WriteString(w, `{"message":"No such container: a b"}`)
		}
	})
	if err := g.Stop(t.Context(), "a b"); err == nil || err.Error() != "No such container: a b" {
		t.Errorf("%v", err)
	}
	if _, err := g.Usage(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}

func FuzzContainers(f *testing.F) {
	f.Add(`[{"Id":"1","Names":["/web"],"State":"running","Ports":[{"PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]}]`)
	f.Add(`[{"Names":[null]}]`)
	f.Fuzz(func(t *testing.T, body string) {
		list, err := decodeContainers(strings.NewReader(body))
		if err == nil && list == nil {
			t.Error("neither a list nor an error")
		}
	})
}
