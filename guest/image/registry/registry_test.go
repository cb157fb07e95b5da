package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func newClient(t *testing.T, opts Options) *Client {
	t.Helper()
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestInsecure(t *testing.T) {
	c := newClient(t, Options{Insecure: []string{"registry.lan:5000", "Other.lan", "10.0.0.0/8"}})
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.3.4.5": true, "[::1]:5000": true,
		"registry.lan:5000": true, "registry.lan:5001": false, "registry.lan": false, "other.lan:1": true, "OTHER.lan": true,
		"10.1.2.3:80": true, "11.1.2.3": false, "docker.io": false, "localhost.evil.com": false,
	} {
		if got := c.Insecure(host); got != want {
			t.Errorf("Insecure(%q) = %v, want %v", host, got, want)
		}
	}
	for _, bad := range []string{"", "http://x", "a b", "10.0.0.0/99"} {
		if _, err := New(Options{Insecure: []string{bad}}); err == nil {
			t.Errorf("New with insecure %q: no error", bad)
		}
	}
}

// TestUserAgent: a registry is told who asks, at every request.
func TestUserAgent(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.UserAgent())
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
		switch r.URL.Path {
		case "/token":
			io.WriteString(w, `{"token":"t"}`)
		default:
			if r.Header.Get("Authorization") == "" {
				w.WriteHeader(http.StatusUnauthorized)
			} else {
				w.WriteHeader(http.StatusNotFound)
			}
		}
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	c := newClient(t, Options{UserAgent: "berth/1"})
	for client, want := range map[string]string{
		"":                              "berth/1",
		"Docker-Client/29 (linux)":      `berth/1 UpstreamClient(Docker-Client/29 \(linux\))`,
		"a;b\\c\r\nEvil: yes\x80\u00fc": `berth/1 UpstreamClient(a\;b\\cEvil: yes)`,
	} {
		asked = nil
		ctx := OnBehalf(t.Context(), client)
		if _, _, err := c.Resolver(ctx, Auth{}, nil).Resolve(ctx, host+"/x:1"); err == nil {
			t.Error("no error")
		}
		if err := c.Login(ctx, host, Auth{Username: "u", Password: "p"}); err == nil {
			t.Error("no error of login")
		}
		if len(asked) < 5 {
			t.Errorf("asked %d times", len(asked))
		}
		for _, got := range asked {
			if got != want {
				t.Errorf("for %q: %q, want %q", client, got, want)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "x": 0, "0": 0, "2": 2 * time.Second, " 3 ": 3 * time.Second, "-1": maxRetryAfter, "99999999999": maxRetryAfter, "100000": maxRetryAfter,
		now.Add(4 * time.Second).Format(http.TimeFormat): 4 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):      0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("retryAfter(%q) = %s, want %s", value, got, want)
		}
	}
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		method string
		want   int32
	}{{http.MethodGet, 3}, {http.MethodHead, 3}, {http.MethodPost, 1}} {
		var asked atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, `{"errors":[{"code":"X","message":"bad"}]}`)
		}))
		c := newClient(t, Options{Retries: 2, Backoff: time.Millisecond})
		req, _ := http.NewRequest(tt.method, server.URL, nil)
		_, err := c.secure.Do(req)
		var status *StatusError
		if !errors.As(err, &status) || status.Code != http.StatusBadGateway || asked.Load() != tt.want || !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v after %d requests", tt.method, err, asked.Load())
		}
		server.Close()
	}
}

func TestRetryEndsWithContext(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "10")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	began := time.Now()
	_, err := newClient(t, Options{}).secure.Do(req)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("error %v after %s", err, time.Since(began))
	}
}

// TestUploadStall sends to a server that does not read.
func TestUploadStall(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err == nil {
			<-done
			conn.Close()
		}
	}()
	defer close(done)
	endless := io.LimitReader(zeros{}, 1<<30)
	req, _ := http.NewRequest(http.MethodPut, "http://"+l.Addr().String(), endless)
	_, err = newClient(t, Options{Stall: 200 * time.Millisecond}).secure.Do(req)
	if !errors.Is(err, ErrStalled) {
		t.Errorf("error = %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestSlowIsNoStall reads from a server that sends little by little, slower as a
// whole than the limit for standing still.
func TestSlowIsNoStall(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 8 {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}))
	defer server.Close()
	resp, err := newClient(t, Options{Stall: 250 * time.Millisecond}).secure.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || len(body) != 8 {
		t.Errorf("read %q, %v", body, err)
	}
}

// tokenRegistry demands bearer tokens, which it gives to whom it knows.
func tokenRegistry(t *testing.T, issue func(r *http.Request) string) string {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		token := issue(r)
		if token == "" {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			if r.URL.Query().Get("last") == "" {
				w.Header().Set("Link", `<http://elsewhere.invalid/v2/x/tags/list?last=a&n=1>; rel="next"`)
				io.WriteString(w, `{"tags":["a"]}`)
				return
			}
			io.WriteString(w, `{"tags":["b"]}`)
		}
	})
	return strings.TrimPrefix(server.URL, "http://")
}

func TestTokens(t *testing.T) {
	for _, tt := range []struct {
		name  string
		auth  Auth
		issue func(r *http.Request) string
		fails bool
	}{
		{name: "anonymous", issue: func(r *http.Request) string {
			if r.URL.Query().Get("scope") != "repository:x:pull" {
				return ""
			}
			return "good"
		}},
		{name: "password", auth: Auth{Username: "me", Password: "secret"}, issue: func(r *http.Request) string {
			r.ParseForm()
			user, password, _ := r.BasicAuth()
			if r.PostForm.Get("password") == "secret" || user == "me" && password == "secret" {
				return "good"
			}
			return ""
		}},
		{name: "identity token", auth: Auth{IdentityToken: "idt"}, issue: func(r *http.Request) string {
			r.ParseForm()
			if r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") == "idt" {
				return "good"
			}
			return ""
		}},
		{name: "registry token", auth: Auth{RegistryToken: "good"}, issue: func(*http.Request) string { return "" }},
		{name: "bad registry token", auth: Auth{RegistryToken: "bad"}, fails: true, issue: func(*http.Request) string { return "good" }},
		{name: "refused", auth: Auth{Username: "me", Password: "wrong"}, fails: true, issue: func(*http.Request) string { return "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := tokenRegistry(t, tt.issue)
			named, err := reference.ParseNormalizedNamed(host + "/x")
			if err != nil {
				t.Fatal(err)
			}
			tags, err := newClient(t, Options{}).Tags(t.Context(), named, tt.auth)
			if tt.fails {
				if !errdefs.IsNotFound(err) {
					t.Errorf("Tags = %v, %v", tags, err)
				}
				return
			}
			if err != nil || strings.Join(tags, " ") != "a b" {
				t.Errorf("Tags = %v, %v", tags, err)
			}
		})
	}
}

// TestCredentialsStay makes sure that a registry cannot send us with our
// credentials to another host.
func TestCredentialsStay(t *testing.T) {
	var leaked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer other.Close()
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer registry.Close()
	for _, auth := range []Auth{{Username: "me", Password: "secret"}, {RegistryToken: "t"}} {
		ref := strings.TrimPrefix(registry.URL, "http://") + "/x:1"
		_, _, err := newClient(t, Options{}).Resolver(t.Context(), auth, nil).Resolve(t.Context(), ref)
		if err == nil || leaked.Load() {
			t.Errorf("error %v, leaked %v", err, leaked.Load())
		}
	}
}

func TestProxy(t *testing.T) {
	var asked atomic.Bool
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Host == "registry.invalid")
	}))
	defer proxy.Close()
	to, _ := url.Parse(proxy.URL)
	c := newClient(t, Options{Proxy: http.ProxyURL(to)})
	resp, err := c.secure.Get("http://registry.invalid/v2/")
	if err != nil || !asked.Load() {
		t.Fatalf("error %v, asked %v", err, asked.Load())
	}
	resp.Body.Close()
}

func TestIsReset(t *testing.T) {
	if !isReset(&net.OpError{Op: "read", Err: syscall.ECONNRESET}) || isReset(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}) {
		t.Error("isReset")
	}
}

func FuzzErrorMessage(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no"}]}`))
	f.Add([]byte("{\"errors\":[{\"message\":\"a\\nb\\u0000\\u202e\"}]}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := errorMessage(body)
		if len(got) > 310 || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("errorMessage(%q) = %q", body, got)
		}
	})
}

func FuzzNextLink(f *testing.F) {
	f.Add(`</v2/x/tags/list?last=a>; rel="next"`)
	f.Add(`>; rel="next"`)
	f.Fuzz(func(t *testing.T, header string) {
		if got := nextLink(header); strings.Contains(got, ">") || len(got) > len(header) {
			t.Errorf("nextLink(%q) = %q", header, got)
		}
	})
}
