package settings

import (
	"encoding/json"
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

// TestCheckRefuses: the errors are docker's, word by word.
func TestCheckRefuses(t *testing.T) {
	type config = apicontainer.Config
	type hostConfig = apicontainer.HostConfig
	yes := true
	port := apinet.PortMap{apinet.MustParsePort("1/tcp"): {{}}}
	for want, spoil := range map[string]func(*config, *hostConfig){
		"the working directory 'x' is invalid, it needs to be an absolute path": func(c *config, _ *hostConfig) { c.WorkingDir = "x" },
		"hostname \"" + strings.Repeat("h", 65) + "\" is too long (maximum 64 bytes)": func(c *config, _ *hostConfig) {
			c.Hostname = strings.Repeat("h", 65)
		},
		"invalid signal: SIGNOPE":          func(c *config, _ *hostConfig) { c.StopSignal = "SIGNOPE" },
		"invalid environment variable: =x": func(c *config, _ *hostConfig) { c.Env = []string{"=x"} },
		"Interval in Healthcheck cannot be less than 1ms": func(c *config, _ *hostConfig) {
			c.Healthcheck = &apicontainer.HealthConfig{Interval: 1}
		},
		"Retries in Healthcheck cannot be negative": func(c *config, _ *hostConfig) {
			c.Healthcheck = &apicontainer.HealthConfig{Retries: -1}
		},
		"invalid restart policy: unknown policy 'often'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'": func(_ *config, h *hostConfig) {
			h.RestartPolicy.Name = "often"
		},
		"invalid restart policy: maximum retry count can only be used with 'on-failure'": func(_ *config, h *hostConfig) {
			h.RestartPolicy = apicontainer.RestartPolicy{Name: "always", MaximumRetryCount: 1}
		},
		"can't create 'AutoRemove' container with restart policy": func(_ *config, h *hostConfig) {
			h.AutoRemove, h.RestartPolicy.Name = true, "always"
		},
		"SHM size can not be less than 0":                                         func(_ *config, h *hostConfig) { h.ShmSize = -1 },
		"invalid IPC mode: x":                                                     func(_ *config, h *hostConfig) { h.IpcMode = "x" },
		"invalid PID mode: container:":                                            func(_ *config, h *hostConfig) { h.PidMode = "container:" },
		"invalid UTS mode: x":                                                     func(_ *config, h *hostConfig) { h.UTSMode = "x" },
		"invalid cgroup namespace mode: x":                                        func(_ *config, h *hostConfig) { h.CgroupnsMode = "x" },
		"Invalid value 1001, range for oom score adj is [-1000, 1000]":            func(_ *config, h *hostConfig) { h.OomScoreAdj = 1001 },
		"unknown or invalid runtime name: kata":                                   func(_ *config, h *hostConfig) { h.Runtime = "kata" },
		"--init is not available: the engine was started without an init program": func(_ *config, h *hostConfig) { h.Init = &yes },
		"unknown log opt 'x' for json-file log driver": func(_ *config, h *hostConfig) {
			h.LogConfig.Config = map[string]string{"x": "y"}
		},
		"logger: no log driver named 'syslog' is registered":                              func(_ *config, h *hostConfig) { h.LogConfig.Type = "syslog" },
		"range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available":          func(_ *config, h *hostConfig) { h.NanoCPUs = 3e9 },
		"Minimum memory limit allowed is 6MB":                                             func(_ *config, h *hostConfig) { h.Memory = 1 << 20 },
		"You should always set the Memory limit when using Memoryswap limit, see usage":   func(_ *config, h *hostConfig) { h.MemorySwap = 1 << 30 },
		"Invalid value 1-0 for cpuset cpus: invalid format: 1-0":                          func(_ *config, h *hostConfig) { h.CpusetCpus = "1-0" },
		"Invalid value 1-42,, for cpuset cpus: invalid format: ":                          func(_ *config, h *hostConfig) { h.CpusetCpus = "1-42,," },
		"Requested CPUs are not available - requested 0,9, available: 0-1":                func(_ *config, h *hostConfig) { h.CpusetCpus = "0,9" },
		"Requested memory nodes are not available - requested 1, available: 0":            func(_ *config, h *hostConfig) { h.CpusetMems = "1" },
		"kernel does not support CPU real-time scheduler":                                 func(_ *config, h *hostConfig) { h.CPURealtimePeriod = 1 },
		"invalid isolation (hyperv): linux only supports 'default'":                       func(_ *config, h *hostConfig) { h.Isolation = "hyperv" },
		"--storage-opt is supported only for overlay over xfs with 'pquota' mount option": func(_ *config, h *hostConfig) { h.StorageOpt = map[string]string{"size": "1G"} },
		"invalid Annotations: the empty string is not permitted as an annotation key": func(_ *config, h *hostConfig) {
			h.Annotations = map[string]string{"": "x"}
		},
		`bad format for add-host: "x"`:           func(_ *config, h *hostConfig) { h.ExtraHosts = []string{"x"} },
		`invalid IP address in add-host: "y"`:    func(_ *config, h *hostConfig) { h.ExtraHosts = []string{"x:y"} },
		`invalid --security-opt 2: "seccompx=y"`: func(_ *config, h *hostConfig) { h.SecurityOpt = []string{"seccompx=y"} },
		`invalid port specification: "99999"`: func(_ *config, h *hostConfig) {
			h.PortBindings = apinet.PortMap{apinet.MustParsePort("1/tcp"): {{HostPort: "99999"}}}
		},
		"conflicting options: port publishing and the container type network mode": func(_ *config, h *hostConfig) {
			h.NetworkMode, h.PortBindings = "container:x", port
		},
		"conflicting options: hostname and the network mode": func(c *config, h *hostConfig) {
			h.NetworkMode, c.Hostname = "container:x", "y"
		},
		"conflicting options: custom host-to-IP mapping and the network mode": func(_ *config, h *hostConfig) {
			h.NetworkMode, h.ExtraHosts = "container:x", []string{"a:1.1.1.1"}
		},
		"conflicting options: port exposing and the container type network mode": func(c *config, h *hostConfig) {
			h.NetworkMode, c.ExposedPorts = "container:x", apinet.PortSet{apinet.MustParsePort("1/tcp"): {}}
		},
		"invalid network mode: invalid container format container:<name|id>": func(_ *config, h *hostConfig) { h.NetworkMode = "container:" },
		"conflicting options: hostname and the UTS mode": func(c *config, h *hostConfig) {
			h.UTSMode, c.Hostname = "host", "y"
		},
	} {
		c, h := &config{}, &hostConfig{}
		spoil(c, h)
		if _, err := Check(c, h, Host{CPUs: 2}); !errdefs.IsInvalidArgument(err) || !strings.EqualFold(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := CheckCommand(&config{}); !errdefs.IsInvalidArgument(err) || err.Error() != "no command specified" {
		t.Errorf("no command: %v", err)
	}
	if _, err := Check(&config{}, &hostConfig{CapAdd: []string{"NOPE"}}, Host{CPUs: 2}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a capability: %v", err)
	}
}

// TestCheckDiscards: what the kernel has no more is left out, with a warning.
func TestCheckDiscards(t *testing.T) {
	yes, no, some, keep := true, false, int64(50), int64(-1)
	for warns, h := range map[string]*apicontainer.HostConfig{
		"": {Resources: apicontainer.Resources{OomKillDisable: &no, MemorySwappiness: &keep}},
		"Your kernel does not support OomKillDisable. OomKillDisable discarded.": {Resources: apicontainer.Resources{OomKillDisable: &yes}},
		"Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.": {
			Resources: apicontainer.Resources{MemorySwappiness: &some}},
		"linux does not support CPU percent. Percent discarded.": {Resources: apicontainer.Resources{CPUPercent: 5}},
		"Published ports are discarded when using host network mode": {NetworkMode: "host",
			PortBindings: apinet.PortMap{apinet.MustParsePort("1/tcp"): {{}}}},
	} {
		w, err := Check(&apicontainer.Config{}, h, Host{CPUs: 2})
		if err != nil || strings.Join(w, "; ") != warns {
			t.Errorf("%v, %q; want %q", err, w, warns)
		}
		if err := Defaults(h); err != nil || h.OomKillDisable == nil || *h.OomKillDisable || h.MemorySwappiness != nil || h.CPUPercent != 0 {
			t.Errorf("left: %+v, %v", h.Resources, err)
		}
	}
}

// FuzzCreate: no body of a create request does harm.
func FuzzCreate(f *testing.F) {
	f.Add([]byte(`{"Image":"x","Cmd":["a"],"Env":["A=b"],"StopSignal":"TERM","Healthcheck":{"Test":["CMD","x"],"Interval":1000000},
"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"1-2"}]},"Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}],"CpusetCpus":"0-1",
"LogConfig":{"Type":"local","Config":{"tag":"{{.ID}}"}},"ExtraHosts":["a:1.1.1.1"],"SecurityOpt":["seccomp={}"],"DeviceCgroupRules":["c 1:* rwm"]}}`))
	f.Add([]byte(`{"Image":"x","HostConfig":{"NetworkMode":"container:y","PidMode":"host","IpcMode":"container:","CapAdd":["ALL"],"Memory":-1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var req apicontainer.CreateRequest
		if json.Unmarshal(body, &req) != nil || req.Config == nil || req.HostConfig == nil {
			return
		}
		if _, err := Check(req.Config, req.HostConfig, Host{CPUs: 2}); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not the client's fault", err)
			}
			return
		}
		Merge(req.Config, imageConfig())
		if err := Defaults(req.HostConfig); err != nil {
			t.Errorf("checked, and yet: %v", err)
		}
		if _, err := Ports(req.Config, req.HostConfig); err != nil {
			t.Errorf("checked, and yet: %v", err)
		}
		HealthCommand(req.Config)
	})
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
		{Port: apinet.MustParsePort("53/udp"), HostIP: netip.IPv4Unspecified()}, // of this family only
		{Port: apinet.MustParsePort("80/tcp")},
		{Port: apinet.MustParsePort("443/tcp"), First: 8443, Last: 8443},
		{Port: apinet.MustParsePort("443/tcp"), HostIP: netip.MustParseAddr("127.0.0.1"), First: 9000, Last: 9002},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestPublishedInside: who publishes a port by SCTP is told where.
func TestPublishedInside(t *testing.T) {
	for port, told := range map[string]bool{"80/tcp": false, "80/sctp": true} {
		exposed := apinet.PortSet{apinet.MustParsePort(port): {}}
		got, err := Check(&apicontainer.Config{ExposedPorts: exposed}, &apicontainer.HostConfig{PublishAllPorts: true}, Host{CPUs: 1})
		if err != nil || len(got) > 0 != told {
			t.Errorf("%s, published: %q, %v", port, got, err)
		}
		if got, err := Check(&apicontainer.Config{ExposedPorts: exposed}, &apicontainer.HostConfig{}, Host{CPUs: 1}); err != nil || len(got) > 0 {
			t.Errorf("%s, exposed: %q, %v", port, got, err)
		}
	}
}
