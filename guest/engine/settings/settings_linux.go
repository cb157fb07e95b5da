package settings

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/runspec"
)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Host is what Check needs to know of the machine.
type Host struct {
	CPUs int
	Init bool // --init is there
}

// maxHostname is the longest host name, in bytes: the kernel's limit.
const maxHostname = 64

// Check refuses what cannot be had, in docker's words, and warns of what is not
// heeded, which it takes out. c and h are what the client sent, before anything is
// filled in. Errors are errdefs.ErrInvalidArgument.
func Check(c *apicontainer.Config, h *apicontainer.HostConfig, host Host) (warnings []string, err error) {
	var ports []Port
	for _, check := range []func() error{
		func() error { return checkNetworking(c, h) },
		func() error { return checkForeign(h) },
		func() error { return checkProcess(c) },
		func() error { return checkHealth(c.Healthcheck) },
		func() error { return checkHost(h) },
		func() (err error) { ports, err = Ports(c, h); return err },
		func() error { warnings, err = CheckResources(&h.Resources, host.CPUs, false); return err },
		func() error { return checkModes(h, host) },
		func() error { return checkLogging(h.LogConfig) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	} else if slices.ContainsFunc(ports, func(p Port) bool { return p.Port.Proto() == apinet.SCTP }) {
		warnings = append(warnings, "SCTP ports are published inside the machine only: they are not open on the host")
	}
	return warnings, nil
}

// CheckResources is Check for limits alone. An update may set what goes with limits
// that are there already.
func CheckResources(r *apicontainer.Resources, cpus int, update bool) (warnings []string, err error) {
	if r.MemorySwappiness != nil && *r.MemorySwappiness == -1 {
		r.MemorySwappiness = nil
	}
	if r.MemorySwappiness != nil {
		warnings = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		r.MemorySwappiness = nil
	}
	if r.OomKillDisable != nil && *r.OomKillDisable {
		warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
	}
	r.OomKillDisable = nil
	if r.CPUPercent > 0 {
		warnings = append(warnings, "linux does not support CPU percent. Percent discarded.")
		r.CPUPercent = 0
	}
	return warnings, runspec.CheckResources(r, cpus, update)
}

// checkForeign refuses what belongs to other systems and older kernels.
func checkForeign(h *apicontainer.HostConfig) error {
	switch {
	case !h.Isolation.IsDefault():
		return invalid("invalid isolation (%s): linux only supports 'default'", h.Isolation)
	case h.IOMaximumBandwidth != 0:
		return invalid("invalid option: QoS maximum bandwidth configuration is not supported on linux")
	case h.IOMaximumIOps != 0:
		return invalid("invalid option: QoS maximum IOPs configuration is not supported on linux")
	case h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0:
		return invalid("kernel does not support CPU real-time scheduler")
	case len(h.StorageOpt) > 0:
		return invalid("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	case h.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	}
	return nil
}

func checkHost(h *apicontainer.HostConfig) error {
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	for _, spec := range h.ExtraHosts {
		if _, _, err := ExtraHost(spec); err != nil {
			return err
		}
	}
	if err := apicontainer.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("%v", err)
	}
	if _, err := runspec.Capabilities(h.CapAdd, h.CapDrop, h.Privileged); err != nil {
		return err
	}
	if _, ok := h.Annotations[""]; ok {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	_, err := runspec.ParseSecurity(h.SecurityOpt)
	return err
}

func checkModes(h *apicontainer.HostConfig, host Host) error {
	switch {
	case !h.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return invalid("invalid PID mode: %v", h.PidMode)
	case h.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case !h.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", h.UTSMode)
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case !h.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case !h.UsernsMode.Valid():
		return invalid("invalid user namespace mode: %v", h.UsernsMode)
	case h.Runtime != "" && h.Runtime != "berth" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2":
		return invalid("unknown or invalid runtime name: %s", h.Runtime)
	case h.Init != nil && *h.Init && !host.Init:
		return invalid("--init is not available: the engine was started without an init program")
	}
	return nil
}

func checkProcess(c *apicontainer.Config) error {
	if len(c.Hostname) > maxHostname {
		return invalid("hostname %q is too long (maximum %d bytes)", c.Hostname, maxHostname)
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return invalid("%v", err)
		}
	}
	for _, v := range c.Env {
		if name, _, _ := strings.Cut(v, "="); name == "" {
			return invalid("invalid environment variable: %s", v)
		}
	}
	return nil
}

// CheckCommand refuses a container, with its image's settings, that has nothing to
// run.
func CheckCommand(c *apicontainer.Config) error {
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return invalid("no command specified")
	}
	return nil
}

func checkLogging(l apicontainer.LogConfig) error {
	switch l.Type {
	case "", "json-file", "local":
		_, err := logfile.ParseOptions(cmp.Or(l.Type, "json-file"), l.Config)
		return err
	case "none":
		return nil
	}
	return invalid("logger: no log driver named '%s' is registered", l.Type)
}

func checkHealth(h *apicontainer.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.v != 0 && d.v < apicontainer.MinimumDuration {
			return invalid("%s in Healthcheck cannot be less than %s", d.name, apicontainer.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	return nil
}

// checkNetworking refuses what does not go together.
func checkNetworking(c *apicontainer.Config, h *apicontainer.HostConfig) error {
	mode := h.NetworkMode
	switch {
	case mode == "container" || mode.IsContainer():
		return checkShared(c, h)
	case h.UTSMode.IsHost() && c.Hostname != "":
		return invalid("conflicting options: hostname and the UTS mode")
	case mode.IsHost() && len(h.Links) > 0:
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// checkShared refuses what a container cannot have that shares the network of
// another.
func checkShared(c *apicontainer.Config, h *apicontainer.HostConfig) error {
	conflict := ""
	switch {
	case h.NetworkMode.ConnectedContainer() == "":
		return invalid("invalid network mode: invalid container format container:<name|id>")
	case c.Hostname != "":
		conflict = "hostname and the network mode"
	case len(h.Links) > 0:
		conflict = "container type network can't be used with links. This would result in undefined behavior"
	case len(h.DNS) > 0:
		conflict = "dns and the network mode"
	case len(h.ExtraHosts) > 0:
		conflict = "custom host-to-IP mapping and the network mode"
	case len(h.PortBindings) > 0 || h.PublishAllPorts:
		conflict = "port publishing and the container type network mode"
	case len(c.ExposedPorts) > 0:
		conflict = "port exposing and the container type network mode"
	default:
		return nil
	}
	return invalid("conflicting options: %s", conflict)
}

// ExtraHost reads --add-host: name:address, or name=address. The address is not
// valid where it is that of the host, "host-gateway".
func ExtraHost(spec string) (name string, addr netip.Addr, err error) {
	name, text, ok := strings.Cut(spec, ":")
	if n, a, eq := strings.Cut(spec, "="); eq && !strings.Contains(n, ":") {
		name, text, ok = n, a, true
	}
	if !ok || name == "" {
		return "", addr, invalid("bad format for add-host: %q", spec)
	}
	if text == "host-gateway" {
		return name, addr, nil
	}
	if addr, err = netip.ParseAddr(strings.Trim(text, "[]")); err != nil {
		return "", addr, invalid("invalid IP address in add-host: %q", text)
	}
	return name, addr, nil
}

// Port is one binding that the user asked for.
type Port struct {
	Port        apinet.Port
	HostIP      netip.Addr // invalid: all addresses
	First, Last uint16     // on the host; 0: any
}

// Ports returns what is to be published, in a fixed order.
func Ports(cfg *apicontainer.Config, h *apicontainer.HostConfig) ([]Port, error) {
	var out []Port
	for port, bindings := range h.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return nil, invalid("invalid port specification: %q", port.String())
		}
		switch port.Proto() {
		case apinet.TCP, apinet.UDP, apinet.SCTP:
		default:
			return nil, invalid("invalid protocol: %s", port.Proto())
		}
		for _, b := range bindings {
			w := Port{Port: port, HostIP: b.HostIP}
			if b.HostPort != "" {
				r, err := apinet.ParsePortRange(b.HostPort)
				if err != nil {
					return nil, invalid("invalid port specification: %q", b.HostPort)
				}
				w.First, w.Last = r.Start(), r.End()
			}
			out = append(out, w)
		}
	}
	if h.PublishAllPorts {
		for port := range cfg.ExposedPorts {
			if len(h.PortBindings[port]) == 0 {
				out = append(out, Port{Port: port})
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Port.Num(), b.Port.Num()), cmp.Compare(a.Port.Proto(), b.Port.Proto()), cmp.Compare(a.First, b.First))
	})
	return out, nil
}
