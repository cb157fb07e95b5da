package dockerapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"
)

// bodies are the requests that come with JSON, each with an example.
var bodies = []struct {
	path string
	seed any
}{
	{"/containers/create?name=made", apicontainer.CreateRequest{
		Config: &apicontainer.Config{Image: "img", Cmd: []string{"true"}, Env: []string{"A=b"}, StopSignal: "SIGRTMIN+3", WorkingDir: "/w",
			ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}, Labels: map[string]string{"a": "b"}, Volumes: map[string]struct{}{"/v": {}},
			Healthcheck: &apicontainer.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Second}},
		HostConfig: &apicontainer.HostConfig{Binds: []string{"v:/b:ro,z"}, RestartPolicy: apicontainer.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2},
			LogConfig:    apicontainer.LogConfig{Type: "local", Config: map[string]string{"max-size": "1k", "tag": "{{.ID}}"}},
			PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8000-8010"}}}, Links: []string{"x:y"}, ExtraHosts: []string{"a:host-gateway"},
			SecurityOpt: []string{"seccomp={}", "no-new-privileges"}, Tmpfs: map[string]string{"/t": "size=1k"}, Sysctls: map[string]string{"net.a": "1"},
			Mounts: []mount.Mount{{Type: "tmpfs", Target: "/m"}, {Type: "volume", Source: "v", Target: "/n", VolumeOptions: &mount.VolumeOptions{Subpath: "a"}}}},
		NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"bridge": {Aliases: []string{"a"},
			IPAMConfig: &network.EndpointIPAMConfig{}, DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.forwarding=1"}}}}}},
	{"/containers/xx/update", apicontainer.UpdateConfig{Resources: apicontainer.Resources{Memory: 1 << 30, NanoCPUs: 1, CpusetCpus: "0-1", PidsLimit: new(int64)},
		RestartPolicy: apicontainer.RestartPolicy{Name: "always"}}},
	{"/containers/xx/exec", apicontainer.ExecCreateRequest{Cmd: []string{"true"}, Env: []string{"A=b"}, User: "1:2", DetachKeys: "ctrl-a,x", WorkingDir: "/", AttachStdout: true}},
	{"/exec/none/start", apicontainer.ExecStartRequest{Detach: true, ConsoleSize: &[2]uint{1, 2}}},
	{"/networks/create", network.CreateRequest{Name: "made", Driver: "bridge", EnableIPv6: new(bool), Options: map[string]string{"com.docker.network.driver.mtu": "1400"},
		IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{}}}, ConfigFrom: &network.ConfigReference{Network: "y"}, Labels: map[string]string{"l": "m"}}},
	{"/networks/bridge/connect", network.ConnectRequest{Container: "xx", EndpointConfig: &network.EndpointSettings{Aliases: []string{"a"}, Links: []string{"x:y"}}}},
	{"/networks/bridge/disconnect", network.DisconnectRequest{Container: "xx", Force: true}},
	{"/volumes/create", volume.CreateRequest{Name: "made", DriverOpts: map[string]string{"type": "tmpfs", "o": "size=1k", "device": "tmpfs"}, Labels: map[string]string{"l": "m"}}},
	{"/commit?container=xx&repo=made", apicontainer.Config{Cmd: []string{"x"}, Env: []string{"A=b"}}},
	{"/auth", registry.AuthConfig{Username: "u", Password: "p", ServerAddress: "localhost:1"}},
}

// FuzzBody: no body of a request makes the engine fail, whatever the version of
// the API it speaks.
func FuzzBody(f *testing.F) {
	for i, b := range bodies {
		seed, err := json.Marshal(b.seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), uint8(56), seed)
		f.Add(uint8(i), uint8(40), []byte(`{"x":null}`))
	}
	h, _ := handler(f)
	post := func(method, path string, body []byte) *httptest.ResponseRecorder {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	if w := post("POST", "/containers/create?name=xx", []byte(`{"Image":"img","Cmd":["sleep"]}`)); w.Code != http.StatusCreated {
		f.Fatal(w.Body)
	}
	f.Fuzz(func(t *testing.T, which, minor uint8, body []byte) {
		b := bodies[int(which)%len(bodies)]
		w := post("POST", fmt.Sprintf("/v1.%d%s", 40+minor%17, b.path), body)
		if w.Code >= 500 && !strings.HasPrefix(b.path, "/auth") { // a registry that cannot be reached is no failure here
			t.Errorf("%s: %d %s", b.path, w.Code, w.Body)
		}
		if w.Code == http.StatusCreated { // the next starts from the same state
			var made struct{ ID, Name string }
			_ = json.Unmarshal(w.Body.Bytes(), &made)
			kind, _, _ := strings.Cut(b.path[1:], "/")
			id := made.ID
			if kind == "volumes" {
				id = made.Name
			}
			post("DELETE", "/"+kind+"/"+id+"?force=1", nil)
		}
	})
}
