package settings

import (
	"path"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/runspec"
)

const defaultShm = 64 << 20 // bytes

// Merge fills what the user left out with what the image says.
func Merge(c *apicontainer.Config, from *dockerspec.DockerOCIImageConfig) {
	if c.User == "" {
		c.User = from.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = from.WorkingDir
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = slices.Clone(from.Cmd)
		}
		if c.Entrypoint == nil {
			c.Entrypoint = slices.Clone(from.Entrypoint)
		}
	} else if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil // --entrypoint "" takes the image's away
	}
	for _, v := range from.Env {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(c.Env, func(o string) bool { n, _, _ := strings.Cut(o, "="); return n == name }) {
			c.Env = append(c.Env, v)
		}
	}
	for port := range from.ExposedPorts {
		if p, err := apinet.ParsePort(port); err == nil {
			if c.ExposedPorts == nil {
				c.ExposedPorts = apinet.PortSet{}
			}
			c.ExposedPorts[p] = struct{}{}
		}
	}
	for dir := range from.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[dir] = struct{}{}
	}
	if len(from.Labels) > 0 && c.Labels == nil {
		c.Labels = map[string]string{}
	}
	for k, v := range from.Labels {
		if _, ok := c.Labels[k]; !ok {
			c.Labels[k] = v
		}
	}
	if c.StopSignal == "" {
		c.StopSignal = from.StopSignal
	}
	mergeHealth(c, from.Healthcheck)
	if c.Volumes == nil {
		c.Volumes = map[string]struct{}{}
	}
	if c.WorkingDir != "" {
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
}

func mergeHealth(c *apicontainer.Config, from *apicontainer.HealthConfig) {
	if from == nil {
		return
	}
	if c.Healthcheck == nil {
		h := *from
		c.Healthcheck = &h
		return
	}
	h := c.Healthcheck
	if len(h.Test) == 0 {
		h.Test = from.Test
	}
	for _, d := range []struct{ to, from *time.Duration }{
		{&h.Interval, &from.Interval}, {&h.Timeout, &from.Timeout},
		{&h.StartPeriod, &from.StartPeriod}, {&h.StartInterval, &from.StartInterval},
	} {
		if *d.to == 0 {
			*d.to = *d.from
		}
	}
	if h.Retries == 0 {
		h.Retries = from.Retries
	}
}

// Defaults fills what inspect shows of a container that asked for nothing.
func Defaults(h *apicontainer.HostConfig) error {
	if h.ShmSize == 0 {
		h.ShmSize = defaultShm
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = "bridge"
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = apicontainer.IPCModePrivate
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = apicontainer.CgroupnsModePrivate
	}
	if h.OomKillDisable == nil {
		h.OomKillDisable = new(bool)
	}
	if h.PortBindings == nil {
		h.PortBindings = apinet.PortMap{}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = apicontainer.RestartPolicyDisabled
	}
	if h.Runtime == "" {
		h.Runtime = "berth"
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	s, err := runspec.ParseSecurity(h.SecurityOpt)
	if err != nil {
		return err
	}
	if !h.Privileged && !s.ClearPaths {
		if h.MaskedPaths == nil {
			h.MaskedPaths = runspec.MaskedPaths
		}
		if h.ReadonlyPaths == nil {
			h.ReadonlyPaths = runspec.ReadonlyPaths
		}
	}
	return nil
}

// HealthCommand is the command of a health check, or nil.
func HealthCommand(cfg *apicontainer.Config) []string {
	if cfg.Healthcheck == nil || len(cfg.Healthcheck.Test) < 2 {
		return nil
	}
	test := cfg.Healthcheck.Test
	switch test[0] {
	case "CMD":
		return test[1:]
	case "CMD-SHELL":
		shell := cfg.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(append([]string{}, shell...), test[1:]...)
	}
	return nil
}
