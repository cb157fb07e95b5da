package settings

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
)

func imageConfig() *dockerspec.DockerOCIImageConfig {
	c := &dockerspec.DockerOCIImageConfig{}
	c.Entrypoint, c.Cmd = []string{"/entry"}, []string{"arg"}
	c.Env = []string{"PATH=/bin", "A=image"}
	c.User, c.WorkingDir, c.StopSignal = "www", "/srv", "SIGQUIT"
	c.Labels = map[string]string{"a": "image", "b": "image"}
	c.Volumes = map[string]struct{}{"/data": {}}
	c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "junk": {}}
	c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}, Interval: time.Second, Retries: 7}
	return c
}

func TestMergeCommand(t *testing.T) {
	for what, c := range map[string]struct {
		entry, cmd         []string
		wantEntry, wantCmd []string
	}{
		"nothing said":       {nil, nil, []string{"/entry"}, []string{"arg"}},
		"a command":          {nil, []string{"x"}, []string{"/entry"}, []string{"x"}},
		"an entry point":     {[]string{"/e"}, nil, []string{"/e"}, nil},
		"no entry point":     {[]string{""}, []string{"x"}, nil, []string{"x"}},
		"both":               {[]string{"/e"}, []string{"x"}, []string{"/e"}, []string{"x"}},
		"empty entry, no ''": {[]string{}, nil, []string{}, []string{"arg"}},
	} {
		cfg := &apicontainer.Config{Entrypoint: c.entry, Cmd: c.cmd}
		Merge(cfg, imageConfig())
		if !slices.Equal(cfg.Entrypoint, c.wantEntry) || !slices.Equal(cfg.Cmd, c.wantCmd) {
			t.Errorf("%s: %q %q, want %q %q", what, cfg.Entrypoint, cfg.Cmd, c.wantEntry, c.wantCmd)
		}
	}
}

func TestMergeRest(t *testing.T) {
	cfg := &apicontainer.Config{Env: []string{"A=user", "A2=x"}, Labels: map[string]string{"a": "user"},
		Healthcheck: &apicontainer.HealthConfig{Interval: time.Minute}}
	Merge(cfg, imageConfig())
	if want := []string{"A=user", "A2=x", "PATH=/bin"}; !slices.Equal(cfg.Env, want) {
		t.Errorf("environment %q, want %q", cfg.Env, want)
	}
	if want := map[string]string{"a": "user", "b": "image"}; !reflect.DeepEqual(cfg.Labels, want) {
		t.Errorf("labels %v", cfg.Labels)
	}
	if cfg.User != "www" || cfg.WorkingDir != "/srv" || cfg.StopSignal != "SIGQUIT" || len(cfg.Volumes) != 1 || len(cfg.ExposedPorts) != 1 {
		t.Errorf("merged %+v", cfg)
	}
	h := cfg.Healthcheck
	if h.Interval != time.Minute || h.Retries != 7 || !slices.Equal(HealthCommand(cfg), []string{"true"}) {
		t.Errorf("health check %+v", h)
	}
	var bare apicontainer.Config
	Merge(&bare, &dockerspec.DockerOCIImageConfig{})
	if bare.Labels == nil {
		t.Error("inspect would show null labels")
	}
}

func TestHealthCommand(t *testing.T) {
	for _, c := range []struct {
		test  []string
		shell []string
		want  string
	}{
		{nil, nil, ""}, {[]string{"NONE"}, nil, ""}, {[]string{"CMD", "a", "b"}, nil, "a b"},
		{[]string{"CMD-SHELL", "x y"}, nil, "/bin/sh -c x y"}, {[]string{"CMD-SHELL", "x"}, []string{"/bin/ash", "-c"}, "/bin/ash -c x"},
	} {
		got := HealthCommand(&apicontainer.Config{Shell: c.shell, Healthcheck: &apicontainer.HealthConfig{Test: c.test}})
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, want %q", c.test, got, c.want)
		}
	}
}

// good is a configuration that passes.
func good() (*apicontainer.Config, *apicontainer.HostConfig) {
	c, h := &apicontainer.Config{Cmd: []string{"x"}}, &apicontainer.HostConfig{}
	if err := Defaults(h); err != nil {
		panic(err)
	}
	return c, h
}

func TestCheckRefuses(t *testing.T) {
	yes, many := true, int64(150)
	for what, spoil := range map[string]func(*apicontainer.Config, *apicontainer.HostConfig){
		"no command":        func(c *apicontainer.Config, _ *apicontainer.HostConfig) { c.Cmd = nil },
		"working directory": func(c *apicontainer.Config, _ *apicontainer.HostConfig) { c.WorkingDir = "x" },
		"stop signal":       func(c *apicontainer.Config, _ *apicontainer.HostConfig) { c.StopSignal = "SIGNOPE" },
		"variable":          func(c *apicontainer.Config, _ *apicontainer.HostConfig) { c.Env = []string{""} },
		"health type": func(c *apicontainer.Config, _ *apicontainer.HostConfig) {
			c.Healthcheck = &apicontainer.HealthConfig{Test: []string{"X"}}
		},
		"health interval": func(c *apicontainer.Config, _ *apicontainer.HostConfig) {
			c.Healthcheck = &apicontainer.HealthConfig{Interval: 1}
		},
		"restart policy": func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.RestartPolicy.Name = "often" },
		"retries of always": func(_ *apicontainer.Config, h *apicontainer.HostConfig) {
			h.RestartPolicy = apicontainer.RestartPolicy{Name: "always", MaximumRetryCount: 1}
		},
		"shared memory":      func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.ShmSize = -1 },
		"ipc mode":           func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.IpcMode = "x" },
		"pid mode":           func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.PidMode = "container:" },
		"runtime":            func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.Runtime = "kata" },
		"init":               func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.Init = &yes },
		"capability":         func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.CapDrop = []string{"x"} },
		"log option":         func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.LogConfig.Config["x"] = "y" },
		"cpus":               func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.NanoCPUs = 3e9 },
		"swap without limit": func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.MemorySwap = 1 << 30 },
		"swappiness":         func(_ *apicontainer.Config, h *apicontainer.HostConfig) { h.MemorySwappiness = &many },
		"sctp": func(_ *apicontainer.Config, h *apicontainer.HostConfig) {
			h.PortBindings = apinet.PortMap{apinet.MustParsePort("1/sctp"): nil}
		},
		"host port": func(_ *apicontainer.Config, h *apicontainer.HostConfig) {
			h.PortBindings = apinet.PortMap{apinet.MustParsePort("1/tcp"): {{HostPort: "99999"}}}
		},
		"ports of another": func(_ *apicontainer.Config, h *apicontainer.HostConfig) {
			h.NetworkMode, h.PortBindings = "container:x", apinet.PortMap{apinet.MustParsePort("1/tcp"): nil}
		},
	} {
		c, h := good()
		spoil(c, h)
		if _, err := Check(c, h, Host{CPUs: 2}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c, h := good()
	if w, err := Check(c, h, Host{CPUs: 2}); err != nil || len(w) > 0 {
		t.Errorf("the defaults: %v, %q", err, w)
	}
	h.OomKillDisable = &yes
	if w, err := Check(c, h, Host{CPUs: 2}); err != nil || len(w) != 1 || h.OomKillDisable != nil {
		t.Errorf("what cannot be heeded: %v, %q", err, w)
	}
}

func TestPorts(t *testing.T) {
	h := &apicontainer.HostConfig{PublishAllPorts: true, PortBindings: apinet.PortMap{
		apinet.MustParsePort("443/tcp"): {{HostPort: "8443"}, {HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "9000-9002"}},
		apinet.MustParsePort("53/udp"):  {{HostIP: netip.IPv4Unspecified()}},
	}}
	c := &apicontainer.Config{ExposedPorts: apinet.PortSet{apinet.MustParsePort("80/tcp"): {}, apinet.MustParsePort("443/tcp"): {}}}
	got, err := Ports(c, h)
	if err != nil {
		t.Fatal(err)
	}
	want := []Port{
		{Port: apinet.MustParsePort("53/udp")},
		{Port: apinet.MustParsePort("80/tcp")},
		{Port: apinet.MustParsePort("443/tcp"), First: 8443, Last: 8443},
		{Port: apinet.MustParsePort("443/tcp"), HostIP: netip.MustParseAddr("127.0.0.1"), First: 9000, Last: 9002},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
