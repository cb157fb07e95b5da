package runspec

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzBuild: what a client says of devices, limits and security is refused or
// becomes a specification.
func FuzzBuild(f *testing.F) {
	f.Add("c 42:* rwm", "seccomp=unconfined", []byte(`{"Ulimits":[{"Name":"nofile","Soft":-1,"Hard":5}],"Memory":10000000,"CpusetCpus":"0-1"}`))
	f.Add("a *:* r", "no-new-privileges:true", []byte(`{"Devices":[{"PathOnHost":"/dev/null","CgroupPermissions":"rx"}],"PidsLimit":-5}`))
	f.Add("x", "seccomp={}", []byte(`{"BlkioDeviceReadBps":[{"Path":"/dev/null","Rate":1}],"DeviceRequests":[{"Driver":"x"}]}`))
	f.Add("b 1:2 m", "label=x", []byte(`{"Ulimits":[null],"BlkioWeightDevice":[null]}`))
	f.Fuzz(func(t *testing.T, rule, option string, resources []byte) {
		h := &container.HostConfig{SecurityOpt: []string{option}}
		_ = json.Unmarshal(resources, &h.Resources)
		h.Devices, h.DeviceCgroupRules = h.Devices[:min(len(h.Devices), 2)], []string{rule}
		if err := CheckResources(&h.Resources, 2, false); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not the client's fault", err)
			}
			return
		}
		spec, err := Build(Input{Config: &container.Config{Cmd: []string{"x"}}, HostConfig: h, Rootfs: t.TempDir()})
		if err != nil {
			return
		}
		if s, err := ParseSecurity(h.SecurityOpt); err == nil && s.Profile != "" {
			_, _ = Seccomp(s.Profile, spec)
		}
		if spec.Linux.Resources.Devices[0] != (specs.LinuxDeviceCgroup{Access: "rwm"}) {
			t.Error("the first rule does not forbid all")
		}
	})
}
