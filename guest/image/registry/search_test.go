package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestSearch(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if r.URL.Path != "/v1/search" || r.URL.Query().Get("n") != "3" || user+password != "up" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		io.WriteString(w, `{"num_results":1,"results":[{"name":"`+r.URL.Query().Get("q")+`","star_count":7,"is_official":true,"description":"d"}]}`)
	}))
	defer s.Close()
	asked := ""
	hub := func(_ context.Context, _, addr string) (net.Conn, error) {
		asked = addr
		return nil, errors.New("no network")
	}
	c := newClient(t, Options{Retries: -1})
	host := strings.TrimPrefix(s.URL, "http://")
	found, err := c.Search(t.Context(), host+"/a/b", 3, Auth{Username: "u", Password: "p"})
	if want := []Found{{Name: "a/b", Description: "d", Stars: 7, Official: true}}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, err := c.Search(t.Context(), host+"/a", 3, Auth{}); err == nil || !strings.Contains(err.Error(), "unexpected status code 418") {
		t.Errorf("refused: %v", err)
	}
	for _, bad := range []struct {
		term  string
		limit int
	}{{"https://x/y", 0}, {"x", 101}, {"x", -1}} {
		if _, err := c.Search(t.Context(), bad.term, bad.limit, Auth{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	c = newClient(t, Options{Retries: -1, Dial: hub})
	for _, term := range []string{"x y", "library/x y", "docker.io/library/x y"} {
		asked = ""
		_, err := c.Search(t.Context(), term, 0, Auth{})
		if err == nil || errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), `Get "https://index.docker.io/v1/search?q=x+y&n=25"`) ||
			!strings.Contains(err.Error(), "no network") || asked != "index.docker.io:443" {
			t.Errorf("%q at the hub, %q asked: %v", term, asked, err)
		}
	}
}

// FuzzFound: no answer of a hub does harm.
func FuzzFound(f *testing.F) {
	f.Add([]byte(`{"results":[{"name":"x","star_count":1}]}`))
	f.Add([]byte(`{"results":[null]}`))
	f.Fuzz(func(t *testing.T, body []byte) { _, _ = decodeFound(bytes.NewReader(body)) })
}
