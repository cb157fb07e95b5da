package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/dockerapi"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/network"
	"github.com/berthvm/berth/guest/wire"
)

// kernel is the machine's kernel release.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// about is what docker version prints.
func about(w wire.Welcome) system.VersionResponse {
	commit, built := "", ""
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case "vcs.time":
				built = s.Value
			}
		}
	}
	v := system.VersionResponse{Version: w.Machine.Version, GitCommit: commit, BuildTime: built, KernelVersion: kernel()}
	v.Platform.Name = "Berth " + w.Machine.Version
	v.Components = []system.ComponentVersion{
		{Name: "Engine", Version: w.Machine.Version, Details: map[string]string{
			"ApiVersion": dockerapi.MaxVersion, "MinAPIVersion": dockerapi.MinVersion, "Os": "linux", "Arch": runtime.GOARCH,
			"GoVersion": runtime.Version(), "GitCommit": commit, "BuildTime": built, "KernelVersion": v.KernelVersion,
			"Experimental": "false"}},
		{Name: "machine", Version: w.Machine.Version, Details: map[string]string{
			"name": w.Machine.Name, "driver": w.Machine.Driver, "acceleration": w.Machine.Acceleration, "hypervisor": w.Machine.Hypervisor,
			"kernel": v.KernelVersion}},
	}
	return v
}

// cdiDirs are where vendors' devices are described, as in docker.
var cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}

var machines = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// info is what docker info prints and does not change.
func info(cfg config, w wire.Welcome) system.Info {
	name, system_ := w.Hostname, "Berth"
	if cfg.native {
		system_ = "Berth (native)"
	}
	arch := runtime.GOARCH
	if m := machines[arch]; m != "" {
		arch = m
	}
	return system.Info{
		ID: engineID(cfg), Name: name, ServerVersion: w.Machine.Version, OperatingSystem: system_, OSType: "linux", Architecture: arch,
		KernelVersion: kernel(), Driver: "overlayfs", DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "ipvlan", "macvlan", "null"}, Log: []string{"json-file", "local", "none"}},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: true, LoggingDriver: "json-file", CgroupDriver: "cgroupfs", CgroupVersion: "2",
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: registries(), DockerRootDir: cfg.root,
		HTTPProxy: w.Proxy.HTTP, HTTPSProxy: w.Proxy.HTTPS, NoProxy: w.Proxy.No, Labels: []string{},
		Runtimes: map[string]system.RuntimeWithStatus{"berth": {}}, DefaultRuntime: "berth",
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, InitBinary: "berth-exec",
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"},
		CDISpecDirs:     cdiDirs, FirewallBackend: &system.FirewallInfo{Driver: "nftables"},
		DefaultAddressPools: addressPools(),
		Warnings:            []string{"WARNING: No IPv6 way out: containers reach each other by IPv6 and can publish ports, but cannot reach the world by it"},
	}
}

// addressPools are where networks that name no subnet get theirs.
func addressPools() []system.NetworkAddressPool {
	var out []system.NetworkAddressPool
	for _, p := range network.DefaultPools() {
		out = append(out, system.NetworkAddressPool{Base: p.Base, Size: p.Bits})
	}
	return out
}

func registries() *registry.ServiceConfig {
	return &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
		Mirrors: []string{},
	}
}

// engineID is the engine's lasting identity.
func engineID(cfg config) string {
	name := filepath.Join(cfg.root, "engine", "id")
	data, err := os.ReadFile(name)
	if err == nil && len(data) >= 32 {
		return strings.TrimSpace(string(data))
	}
	id := record.NewID()
	_ = os.WriteFile(name, []byte(id+"\n"), 0o600) // without it the next start has another
	return id
}
