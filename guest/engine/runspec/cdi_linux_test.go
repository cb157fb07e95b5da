package runspec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const vendorSpec = `{"cdiVersion": "0.7.0", "kind": "example.com/card",
 "devices": [{"name": "0", "containerEdits": {"env": ["CARD=0"], "deviceNodes": [{"path": "/dev/card0", "hostPath": "/dev/zero", "permissions": "r"}]}},
  {"name": "1", "containerEdits": {"mounts": [{"hostPath": "/usr/share", "containerPath": "/opt/card", "options": ["ro", "bind"]}], "additionalGids": [44]}}],
 "containerEdits": {"env": ["CARDS=some"]}}`

func TestVendorDevices(t *testing.T) {
	dir := t.TempDir()
	dirs := []string{filepath.Join(dir, "missing"), dir}
	if names, warnings := VendorDevices(dirs); len(names)+len(warnings) != 0 {
		t.Errorf("of nothing: %q, %q", names, warnings)
	}
	for name, text := range map[string]string{"card.json": vendorSpec, "broken.yaml": "cdiVersion: [", "readme": "no specification"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, warnings := VendorDevices(dirs)
	if !slices.Equal(names, []string{"example.com/card=0", "example.com/card=1"}) {
		t.Errorf("devices: %q", names)
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "CDI: Error associated with spec file "+dir+"/broken.yaml: ") {
		t.Errorf("warnings: %q", warnings)
	}

	build := func(requests ...container.DeviceRequest) (*specs.Spec, error) {
		return Build(Input{Config: &container.Config{Cmd: []string{"x"}, Env: []string{"A=1"}},
			HostConfig: &container.HostConfig{Resources: container.Resources{DeviceRequests: requests}}, Rootfs: t.TempDir(), CDIDirs: dirs})
	}
	spec, err := build(container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"example.com/card=0", "example.com/card=1"}},
		container.DeviceRequest{Driver: "cdi"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"A=1", "CARD=0", "CARDS=some"} {
		if !slices.Contains(spec.Process.Env, want) {
			t.Errorf("%s is not in %q", want, spec.Process.Env)
		}
	}
	if d := spec.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/card0" || d[0].Major != 1 || d[0].Minor != 5 {
		t.Errorf("devices: %+v", d)
	}
	rules := spec.Linux.Resources.Devices
	if r := rules[len(rules)-1]; !r.Allow || *r.Major != 1 || *r.Minor != 5 || r.Access != "r" {
		t.Errorf("the last rule: %+v", r)
	}
	if !slices.Contains(spec.Process.User.AdditionalGids, 44) {
		t.Errorf("groups: %v", spec.Process.User.AdditionalGids)
	}
	if i := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/opt/card" }); i < 0 || spec.Mounts[i].Source != "/usr/share" {
		t.Errorf("mounts: %+v", spec.Mounts)
	}

	for _, tc := range []struct {
		request container.DeviceRequest
		want    string
	}{
		{container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"example.com/card=2"}}, "CDI device injection failed: unresolvable CDI devices example.com/card=2"},
		{container.DeviceRequest{Driver: "cdi", Count: 1}, "unexpected count in CDI device request"},
		{container.DeviceRequest{Driver: "cdi", Options: map[string]string{"a": "b"}}, "unexpected options in CDI device request"},
		{container.DeviceRequest{Driver: "nvidia", Capabilities: [][]string{{"gpu"}}}, `could not select device driver "nvidia" with capabilities: [[gpu]]`},
	} {
		if _, err := build(tc.request); err == nil || err.Error() != tc.want {
			t.Errorf("%+v: %v, want %s", tc.request, err, tc.want)
		}
	}
}
