package registry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLogin(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "jo" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	if err := c.Login(context.Background(), host, Auth{Username: "jo", Password: "secret"}); err != nil {
		t.Errorf("the right password: %v", err)
	}
	for _, a := range []Auth{{Username: "jo", Password: "wrong"}, {}} {
		if err := c.Login(context.Background(), host, a); !errdefs.IsUnauthorized(err) {
			t.Errorf("%+v: %v", a, err)
		}
	}
	if err := c.Login(context.Background(), "127.0.0.1:1", Auth{}); err == nil {
		t.Error("nobody there, and no error")
	}
}
