package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
)

// TestDecodeCreate: what a request says is what its version of the API has.
func TestDecodeCreate(t *testing.T) {
	for _, c := range []struct {
		what, body string
		v          version
		fails      string
		warns      string
		check      func(apicontainer.CreateRequest) bool
	}{
		{what: "nothing", body: `{}`, v: 56, fails: "config cannot be empty in order to create a container"},
		{what: "all parts", body: `{"Image":"x"}`, v: 56, check: func(r apicontainer.CreateRequest) bool {
			return r.HostConfig.NetworkMode == "bridge" && r.NetworkingConfig != nil
		}},
		{what: "default network", body: `{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"default":{"Aliases":["a"]}}}}`, v: 56,
			check: func(r apicontainer.CreateRequest) bool {
				return len(r.NetworkingConfig.EndpointsConfig["bridge"].Aliases) == 1
			}},
		{what: "options of another type", body: `{"Image":"x","HostConfig":{"Mounts":[{"Type":"bind","VolumeOptions":{}}]}}`, v: 42,
			fails: `VolumeOptions must not be specified on mount type "bind"`},
		{what: "options of another type, before", body: `{"Image":"x","HostConfig":{"Mounts":[{"Type":"bind","VolumeOptions":{}}]}}`, v: 41,
			check: func(r apicontainer.CreateRequest) bool { return r.HostConfig.Mounts[0].VolumeOptions == nil }},
		{what: "subpath", body: `{"Image":"x","HostConfig":{"Mounts":[{"Type":"volume","VolumeOptions":{"Subpath":"a"}}]}}`, v: 44,
			fails: "VolumeOptions.Subpath needs API v1.45 or newer"},
		{what: "image mount", body: `{"Image":"x","HostConfig":{"Mounts":[{"Type":"image"}]}}`, v: 47,
			fails: `Mount type "Image" needs API v1.48 or newer`},
		{what: "force recursive", body: `{"Image":"x","HostConfig":{"Mounts":[{"Type":"bind","BindOptions":{"ReadOnlyForceRecursive":true}}]}}`, v: 43,
			fails: "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"},
		{what: "two networks", body: `{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"b":{},"a":{}}}}`, v: 43,
			fails: "Container cannot be created with multiple network endpoints: a, b"},
		{what: "start interval", body: `{"Image":"x","Healthcheck":{"StartInterval":5000000000}}`, v: 43,
			check: func(r apicontainer.CreateRequest) bool { return r.Healthcheck.StartInterval == 0 }},
		{what: "MAC address, long ago", body: `{"Image":"x","MacAddress":"02:42:00:00:00:01"}`, v: 41,
			check: func(r apicontainer.CreateRequest) bool {
				return r.NetworkingConfig.EndpointsConfig["bridge"].MacAddress.String() == "02:42:00:00:00:01"
			}},
		{what: "MAC address and the network mode", body: `{"Image":"x","MacAddress":"02:42:00:00:00:01","HostConfig":{"NetworkMode":"host"}}`, v: 41,
			fails: "conflicting options: mac-address and the network mode"},
		{what: "MAC address of late", body: `{"Image":"x","MacAddress":"02:42:00:00:00:01"}`, v: 48, warns: "The container-wide MacAddress field is now deprecated"},
		{what: "two MAC addresses", v: 48, fails: "the container-wide MAC address must match",
			body: `{"Image":"x","MacAddress":"02:42:00:00:00:01","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:00:00:00:02"}}}}`},
		{what: "sysctls of eth0", body: `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth0.log_martians":"1","net.core.somaxconn":"9"}}}`, v: 47,
			warns: `Migrated sysctl "net.ipv4.conf.eth0.log_martians" to DriverOpts{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.log_martians=1"}.`,
			check: func(r apicontainer.CreateRequest) bool {
				return len(r.HostConfig.Sysctls) == 1 && r.NetworkingConfig.EndpointsConfig["bridge"].DriverOpts[optionSysctls] == "net.ipv4.conf.IFNAME.log_martians=1"
			}},
		{what: "sysctls of eth0 and of the endpoint", v: 46, warns: "Migrated sysctl",
			body: `{"Image":"x","HostConfig":{"NetworkMode":"n","Sysctls":{"net.ipv4.conf.eth0.forwarding":"1"}},"NetworkingConfig":{"EndpointsConfig":{"m":{},"n":{"DriverOpts":{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.forwarding=0"}}}}}`,
			check: func(r apicontainer.CreateRequest) bool {
				return r.NetworkingConfig.EndpointsConfig["n"].DriverOpts[optionSysctls] == "net.ipv4.conf.IFNAME.forwarding=1,net.ipv4.conf.IFNAME.forwarding=0"
			}},
		{what: "sysctls of an interface", body: `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth0.log_martians":"1"}}}`, v: 48,
			fails: `interface specific sysctl setting "net.ipv4.conf.eth0.log_martians" must be supplied using driver option 'com.docker.network.endpoint.sysctls'`},
		{what: "sysctls of eth1", body: `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth1.log_martians":"1"}}}`, v: 45,
			fails: "unable to determine network endpoint for sysctl net.ipv4.conf.eth1.log_martians"},
		{what: "sysctls of a network that is not listed", v: 47, fails: "unable to find a network for sysctl net.ipv4.conf.eth0.log_martians",
			body: `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth0.log_martians":"1"},"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"m":{}}}}`},
		{what: "sysctls in the host's network", body: `{"Image":"x","HostConfig":{"NetworkMode":"host","Sysctls":{"net.ipv4.conf.eth0.log_martians":"1"}}}`, v: 56,
			check: func(r apicontainer.CreateRequest) bool { return len(r.HostConfig.Sysctls) == 1 }},
		{what: "capabilities", body: `{"Image":"x","HostConfig":{"Capabilities":["a"]}}`, v: 40, fails: "the HostConfig.Capabilities field is not supported"},
		{what: "no bindings", body: `{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[]}}}`, v: 56,
			warns: "Following container port(s) have an empty list of port-bindings: 80/tcp. Such bindings",
			check: func(r apicontainer.CreateRequest) bool {
				return len(r.HostConfig.PortBindings[apinet.MustParsePort("80/tcp")]) == 1
			}},
		{what: "volume driver", body: `{"Image":"x","HostConfig":{"VolumeDriver":"d","Mounts":[{"Type":"volume"}]}}`, v: 56,
			warns: "WARNING: the container-wide volume-driver configuration is ignored"},
	} {
		req, warnings, err := decodeCreate([]byte(c.body), c.v)
		switch {
		case c.fails != "":
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v, want %s", c.what, err, c.fails)
			}
		case err != nil:
			t.Errorf("%s: %v", c.what, err)
		case !strings.HasPrefix(strings.Join(warnings, "; "), c.warns) || c.warns == "" && len(warnings) > 0:
			t.Errorf("%s: warnings %q, want %q", c.what, warnings, c.warns)
		case c.check != nil && !c.check(req):
			body, _ := json.Marshal(req)
			t.Errorf("%s: %s", c.what, body)
		}
	}
}

func FuzzDecodeCreate(f *testing.F) {
	f.Add([]byte(`{"Image":"x","MacAddress":"02:42:00:00:00:01","HostConfig":{"PortBindings":{"80/tcp":[]},"Mounts":[{"Type":"bind","BindOptions":{}}]}}`), 41)
	f.Add([]byte(`{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"default":null,"b":{}}}}`), 44)
	f.Fuzz(func(t *testing.T, body []byte, v int) {
		req, _, err := decodeCreate(body, version(v))
		if err == nil && (req.Config == nil || req.HostConfig == nil || req.NetworkingConfig == nil) {
			t.Error("a part is missing")
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v is not the client's fault", err)
		}
	})
}

// FuzzAuth: what a header says of who asks is read or counts as nothing.
func FuzzAuth(f *testing.F) {
	for _, body := range []string{`{"username":"u","password":"p"}`, `{"auth":"dTpw"}`, `{"identitytoken":"t"}`, `null`, `{`} {
		f.Add(base64.URLEncoding.EncodeToString([]byte(body)))
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(body)))
	}
	f.Fuzz(func(t *testing.T, header string) {
		c := call{Request: &http.Request{Header: http.Header{registry.AuthHeader: {header}}}}
		c.auth()
	})
}

// FuzzMoment: a time is the moment that it writes, or refused.
func FuzzMoment(f *testing.F) {
	for _, v := range []string{"0", "1", "1700000000.5", "-1.000000001", "2024-01-02T03:04:05.678Z", "1e3", ".5", "1.", "9223372036854775807.999999999"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		m, err := parseMoment("since", v)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v is not the client's fault", v, err)
			}
			return
		}
		if whole, err := strconv.ParseInt(v, 10, 32); err == nil && whole != 0 && m.Unix() != whole {
			t.Errorf("%q is %v", v, m)
		}
	})
}

// FuzzDetachKeys: no keys but those of a terminal are taken.
func FuzzDetachKeys(f *testing.F) {
	for _, v := range []string{"ctrl-p,ctrl-q", "a", "ctrl-@,ctrl-[", "ctrl-,", ",", "DEL"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		keys, err := detachKeys(v)
		if err == nil && len(keys) != strings.Count(v, ",")+1 && v != "" {
			t.Errorf("%q is %v", v, keys)
		}
	})
}
