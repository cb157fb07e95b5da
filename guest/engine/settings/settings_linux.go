package settings

import (
	"cmp"
	"fmt"
	"net/netip"
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

// Check refuses what cannot be had, in docker's words, and warns of what is not
// heeded, which it takes out. Errors are errdefs.ErrInvalidArgument.
func Check(c *apicontainer.Config, h *apicontainer.HostConfig, host Host) (warnings []string, err error) {
	for _, check := range []func() error{
		func() error { return checkModes(h) },
		func() error { return checkProcess(c, h, host) },
		func() error { return checkLogging(h.LogConfig) },
		func() error { return checkHealth(c.Healthcheck) },
		func() error { return runspec.CheckResources(&h.Resources, host.CPUs) },
		func() error { return checkNetworking(h) },
		func() error { _, err := Ports(c, h); return err },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		h.OomKillDisable = nil
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness != -1 {
		warnings = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		h.MemorySwappiness = nil
	}
	if h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return warnings, nil
}

func checkModes(h *apicontainer.HostConfig) error {
	if err := apicontainer.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("%v", err)
	}
	switch {
	case h.AutoRemove && !h.RestartPolicy.IsNone():
		return invalid("can't create 'AutoRemove' container with restart policy")
	case h.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case !h.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return invalid("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", h.UTSMode)
	case !h.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case h.UsernsMode != "" && !h.UsernsMode.IsHost():
		return invalid("invalid user namespace mode: %v", h.UsernsMode)
	case h.Runtime != "berth" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2":
		return invalid("unknown or invalid runtime name: %s", h.Runtime)
	case len(h.DeviceRequests) > 0:
		return invalid("could not select device driver %q with capabilities: %v",
			h.DeviceRequests[0].Driver, h.DeviceRequests[0].Capabilities)
	}
	_, err := runspec.Capabilities(h.CapAdd, h.CapDrop, h.Privileged)
	return err
}

func checkProcess(c *apicontainer.Config, h *apicontainer.HostConfig, host Host) error {
	switch {
	case h.Init != nil && *h.Init && !host.Init:
		return invalid("--init is not available: the engine was started without an init program")
	case c.WorkingDir != "" && !strings.HasPrefix(c.WorkingDir, "/"):
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	case len(c.Entrypoint) == 0 && len(c.Cmd) == 0:
		return invalid("no command specified")
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

func checkLogging(l apicontainer.LogConfig) error {
	switch l.Type {
	case "json-file", "local":
		_, err := logfile.ParseOptions(l.Type, l.Config)
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
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, h.Test[0]) {
		return invalid("Unknown health check type '%s'", h.Test[0])
	}
	return nil
}

// checkNetworking refuses what does not go together.
func checkNetworking(h *apicontainer.HostConfig) error {
	mode := h.NetworkMode
	if mode.IsContainer() {
		switch {
		case len(h.PortBindings) > 0:
			return invalid("conflicting options: port publishing and the container type network mode")
		case len(h.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(h.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		}
		return nil
	}
	if mode.IsHost() && len(h.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
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
		case apinet.TCP, apinet.UDP:
		default:
			return nil, invalid("cannot publish %s: only tcp and udp are forwarded from the host", port)
		}
		for _, b := range bindings {
			w := Port{Port: port, HostIP: b.HostIP}
			if w.HostIP.IsUnspecified() {
				w.HostIP = netip.Addr{}
			}
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
