package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/wire"
)

// traced is an error that prints more than it says.
type traced struct{}

func (traced) Error() string { return "no such step" }

func (e traced) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%s\nmain.go:1", e.Error()) }

// TestErrorText: an error takes one line of the log, whatever it knows besides.
func TestErrorText(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: errorText})).
		Warn("request failed", "status", 500, "error", traced{})
	if got := out.String(); !strings.HasSuffix(got, `status=500 error="no such step"`+"\n") {
		t.Errorf("logged %q", got)
	}
}

// TestProxyEnv: what programs are told of a proxy keeps them off it for the loopback.
func TestProxyEnv(t *testing.T) {
	for _, c := range []struct {
		in   wire.Proxy
		want string
	}{
		{wire.Proxy{}, ""},
		{wire.Proxy{HTTPS: "http://p:1"}, "https_proxy=http://p:1 no_proxy=localhost,127.0.0.1,::1"},
		{wire.Proxy{HTTP: "http://p:1", No: "*"}, "http_proxy=http://p:1 no_proxy=*"},
		{wire.Proxy{HTTP: "http://p:1", No: "corp.test"}, "http_proxy=http://p:1 no_proxy=corp.test,localhost,127.0.0.1,::1"},
	} {
		got := proxyEnv(c.in)
		slices.Sort(got)
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v is %q, want %q", c.in, s, c.want)
		}
	}
	loopback := imageOptions(config{}, wire.Welcome{Proxy: wire.Proxy{HTTP: "http://p.test:1"}}).Proxy
	for host, want := range map[string]bool{"git.localhost:80": false, "127.0.0.1": false, "elsewhere.test": true} {
		via, err := loopback(httptest.NewRequest(http.MethodGet, "http://"+host+"/", nil))
		if err != nil || (via != nil) != want {
			t.Errorf("%s goes by %v, %v", host, via, err)
		}
	}
}
