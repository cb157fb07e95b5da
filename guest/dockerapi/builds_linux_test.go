package dockerapi

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/berthvm/berth/guest/engine/builds"
)

func buildCall(query, config string) *call {
	r := httptest.NewRequest(http.MethodPost, "/build", strings.NewReader("tar"))
	r.URL.RawQuery = query
	if config != "" {
		r.Header.Set("X-Registry-Config", base64.URLEncoding.EncodeToString([]byte(config)))
	}
	return &call{Request: r, w: httptest.NewRecorder()}
}

// TestBuildRequest: what a client asks for is what is built.
func TestBuildRequest(t *testing.T) {
	for _, c := range []struct {
		name  string
		query url.Values
		want  builds.Request
		body  bool // the context is the request's body
		bad   string
	}{
		{name: "nothing", body: true, want: builds.Request{Classic: true}},
		{name: "all", body: true, query: url.Values{
			"t": {"a", "localhost:5000/b:1"}, "dockerfile": {"D"}, "target": {"x"}, "networkmode": {"none"}, "extrahosts": {"h:1.2.3.4"},
			"nocache": {"1"}, "pull": {"true"}, "platform": {"linux/amd64,linux/arm64"}, "shmsize": {"9"}, "cgroupparent": {"p"},
			"buildargs": {`{"A":"1","B":null}`}, "labels": {`{"l":"2"}`}, "cachefrom": {`["c"]`},
			"memory": {"9"}, "memswap": {"-1"}, "cpuquota": {"many"}, "cpusetcpus": {"0"},
			"ulimits": {`[{"Name":"nofile","Soft":1,"Hard":2}]`}, "outputs": {`[{"Type":"tar","Attrs":{}}]`},
		}, want: builds.Request{
			Tags: []string{"docker.io/library/a:latest", "localhost:5000/b:1"}, Dockerfile: "D", Target: "x", Network: "none",
			ExtraHosts: []string{"h:1.2.3.4"}, NoCache: true, Pull: true, Platforms: "linux/amd64,linux/arm64", ShmSize: 9, CgroupPath: "p",
			Args: map[string]string{"A": "1"}, Labels: map[string]string{"l": "2"}, CacheFrom: []string{"c"}, Ulimits: []string{"nofile=1:2"}, Classic: true,
			Limits: builds.Limits{Memory: 9, MemorySwap: -1, CPUs: "0"},
		}},
		{name: "session", query: url.Values{"version": {"2"}, "session": {"s"}, "remote": {"client-session"}}, want: builds.Request{Session: "s"}},
		{name: "upload", query: url.Values{"version": {"2"}, "session": {"s"}, "remote": {"upload-request"}}, want: builds.Request{Session: "s"}},
		{name: "URL", query: url.Values{"remote": {"https://h/x.git#main"}}, want: builds.Request{Remote: "https://h/x.git#main", Classic: true}},
		{name: "tag", query: url.Values{"t": {"A B"}}, bad: "invalid reference format"},
		{name: "digest", query: url.Values{"t": {"a@sha256:" + strings.Repeat("0", 64)}}, bad: "cannot contain a digest"},
		{name: "platform", query: url.Values{"platform": {"a/b/c/d/e"}}, bad: "platform"},
		{name: "size", query: url.Values{"shmsize": {"big"}}, bad: "shmsize"},
		{name: "arguments", query: url.Values{"buildargs": {"[]"}}, bad: "buildargs"},
		{name: "squash", query: url.Values{"squash": {"1"}}, bad: "experimental"},
		{name: "limits", query: url.Values{"ulimits": {"{"}}, bad: "ulimits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := buildCall(c.query.Encode(), "").buildRequest()
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Fatalf("error %v, want %q", err, c.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (got.Context != nil) != c.body {
				t.Errorf("the context is the body: %v, want %v", got.Context != nil, c.body)
			}
			if len(c.query["outputs"]) != len(got.Outputs) {
				t.Errorf("outputs %+v", got.Outputs)
			}
			got.Context, got.Outputs, got.Credentials = nil, nil, nil
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("request\n%+v, want\n%+v", got, c.want)
			}
		})
	}
}

func TestRegistryConfig(t *testing.T) {
	get := buildCall("", `{"localhost:5000":{"username":"u","password":"p"},"https://index.docker.io/v1/":{"auth":"aDppdWI="},
		"token.test":{"identitytoken":"tok"}}`).registryConfig()
	for host, want := range map[string]string{
		"localhost:5000": "u p", "registry-1.docker.io": "h iub", "token.test": " tok", "other.test": " ",
	} {
		if user, secret := get(host); user+" "+secret != want {
			t.Errorf("%s gets %q %q, want %q", host, user, secret, want)
		}
	}
	if buildCall("", "").registryConfig() != nil {
		t.Error("no header, and there are credentials")
	}
}

// FuzzBuildRequest: no request breaks the engine.
func FuzzBuildRequest(f *testing.F) {
	f.Add("t=a&buildargs={\"A\":null}&ulimits=[null]&platform=,", `{"a":{}}`)
	f.Add("outputs=[{}]&cachefrom=null&labels={}&shmsize=-1", `[`)
	f.Fuzz(func(t *testing.T, query, config string) {
		r, err := buildCall(query, config).buildRequest()
		if err == nil && r.Credentials != nil {
			r.Credentials("registry-1.docker.io")
		}
	})
}
