package engine

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/runspec"
	"github.com/berthvm/berth/guest/image"
)

const (
	defaultShm  = 64 << 20 // bytes
	defaultStop = 10       // seconds
)

// CreateOptions are what Create makes a container of. Create takes over the
// structures.
type CreateOptions struct {
	Name       string
	Platform   *ocispec.Platform
	Config     *apicontainer.Config
	HostConfig *apicontainer.HostConfig
	Networking *apinet.NetworkingConfig
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// Create makes a container and returns its ID and warnings.
func (e *Engine) Create(ctx context.Context, o CreateOptions) (id string, warnings []string, err error) {
	if err := e.waitReady(ctx); err != nil {
		return "", nil, err
	}
	if o.Config == nil {
		return "", nil, invalid("config cannot be empty in order to create a container")
	}
	if o.HostConfig == nil {
		o.HostConfig = &apicontainer.HostConfig{}
	}
	id = record.NewID()
	defer e.Spans.Begin("create", id)()
	if o.Config.Image == "" {
		return "", nil, invalid("no image specified: name one")
	}
	img, err := e.opts.Images.GetPlatform(ctx, o.Config.Image, o.Platform)
	if err != nil {
		return "", nil, err
	}
	mergeImage(o.Config, img)
	if err := setDefaults(o.HostConfig); err != nil {
		return "", nil, err
	}
	if warnings, err = e.check(o); err != nil {
		return "", nil, err
	}
	rec := &record.Record{ID: id, Created: time.Now().UTC(), ImageID: img.ID.String(), Platform: o.Platform,
		Config: o.Config, HostConfig: o.HostConfig}
	if img.Manifest.Digest != "" {
		rec.Manifest = &img.Manifest
	}
	if rec.Config.Hostname == "" {
		rec.Config.Hostname = id[:12]
		if rec.HostConfig.NetworkMode.IsHost() {
			rec.Config.Hostname = e.opts.Hostname
		}
	}
	rec.Endpoints = wantedNetworks(o)
	return id, warnings, e.create(ctx, rec, o.Name)
}

// create makes what lies on the disk of a container, and puts it in the tables.
func (e *Engine) create(ctx context.Context, rec *record.Record, name string) (err error) {
	c, err := e.reserve(rec, name)
	if err != nil {
		return err
	}
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
		}
	}()
	undo = append(undo, func() { e.unreserve(c) })
	// The directory goes first: after a crash in between, Restore finds it and
	// removes what there is of the container.
	if err := e.store.Create(rec.ID); err != nil {
		return err
	}
	undo = append(undo, func() { _ = e.store.Remove(rec.ID) })
	if rec.Mounts, err = e.resolveMounts(ctx, rec); err != nil {
		return err
	}
	undo = append(undo, func() { e.releaseVolumes(context.WithoutCancel(ctx), rec, true) })
	volatile := rec.HostConfig.AutoRemove
	if err := e.opts.Images.Prepare(ctx, rec.ID, rec.Config.Image, rec.Platform, volatile); err != nil {
		return err
	}
	undo = append(undo, func() { _ = e.opts.Images.RemoveRootfs(context.WithoutCancel(ctx), rec.ID) })
	if err := e.store.Save(rec, !rec.HostConfig.AutoRemove); err != nil {
		return err
	}
	e.mu.Lock()
	e.byID[rec.ID] = c
	e.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event(events.ActionCreate)
	return nil
}

// reserve takes a name for a container that is being made.
func (e *Engine) reserve(rec *record.Record, name string) (*Container, error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" && !namePattern.MatchString(name) {
		return nil, invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, errdefs.ErrUnavailable.WithMessage("the engine is shutting down")
	}
	if name == "" {
		name = randomName(func(n string) bool { return e.byName[n] != nil }, rec.ID)
	}
	if other := e.byName[name]; other != nil {
		return nil, nameTaken(name, other.id)
	}
	rec.Name = name
	c := newContainer(e, rec)
	e.byName[name] = c
	return c, nil
}

func nameTaken(name, id string) error {
	return conflict("Conflict. The container name %q is already in use by container %q. "+
		"You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id)
}

func (e *Engine) unreserve(c *Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byID, c.id)
	if e.byName[c.rec.Name] == c {
		delete(e.byName, c.rec.Name)
	}
}

// mergeImage fills what the user left out with what the image says.
func mergeImage(c *apicontainer.Config, img image.Image) {
	from := img.Spec.Config
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
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
}

func mergeHealth(c *apicontainer.Config, from *record.Healthcheck) {
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

// setDefaults fills what inspect shows of a container that asked for nothing.
func setDefaults(h *apicontainer.HostConfig) error {
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
		if h.Privileged {
			h.CgroupnsMode = apicontainer.CgroupnsModeHost
		}
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

// check refuses what cannot be had, and warns of what is not heeded.
func (e *Engine) check(o CreateOptions) (warnings []string, err error) {
	c, h := o.Config, o.HostConfig
	if err := apicontainer.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return nil, invalid("%v", err)
	}
	switch {
	case h.AutoRemove && !h.RestartPolicy.IsNone():
		return nil, invalid("can't create 'AutoRemove' container with restart policy")
	case h.ShmSize < 0:
		return nil, invalid("SHM size can not be less than 0")
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return nil, invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case !h.IpcMode.Valid():
		return nil, invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return nil, invalid("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return nil, invalid("invalid UTS mode: %v", h.UTSMode)
	case !h.CgroupnsMode.Valid():
		return nil, invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case h.UsernsMode != "" && !h.UsernsMode.IsHost():
		return nil, invalid("invalid user namespace mode: %v", h.UsernsMode)
	case h.Init != nil && *h.Init && e.opts.InitPath == "":
		return nil, invalid("--init is not available: the engine was started without an init program")
	case c.WorkingDir != "" && !strings.HasPrefix(c.WorkingDir, "/"):
		return nil, invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	case len(c.Entrypoint) == 0 && len(c.Cmd) == 0:
		return nil, invalid("no command specified")
	case h.Runtime != "berth" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2":
		return nil, invalid("unknown or invalid runtime name: %s", h.Runtime)
	case len(h.DeviceRequests) > 0:
		return nil, invalid("could not select device driver %q with capabilities: %v",
			h.DeviceRequests[0].Driver, h.DeviceRequests[0].Capabilities)
	}
	if err := checkLogging(h.LogConfig); err != nil {
		return nil, err
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return nil, invalid("%v", err)
		}
	}
	for _, v := range c.Env {
		if name, _, _ := strings.Cut(v, "="); name == "" {
			return nil, invalid("invalid environment variable: %s", v)
		}
	}
	if err := checkHealth(c.Healthcheck); err != nil {
		return nil, err
	}
	if _, err := runspec.Capabilities(h.CapAdd, h.CapDrop, h.Privileged); err != nil {
		return nil, err
	}
	if err := runspec.CheckResources(&h.Resources, ncpu()); err != nil {
		return nil, err
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		h.OomKillDisable = nil
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness != -1 {
		warnings = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		h.MemorySwappiness = nil
	}
	if _, err := wantedPorts(c, h); err != nil {
		return nil, err
	}
	if h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return warnings, e.checkNetworking(o)
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

func checkHealth(h *record.Healthcheck) error {
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

// checkNetworking refuses networks that do not exist or do not go together.
func (e *Engine) checkNetworking(o CreateOptions) error {
	mode := o.HostConfig.NetworkMode
	if mode.IsContainer() {
		switch {
		case len(o.HostConfig.PortBindings) > 0:
			return invalid("conflicting options: port publishing and the container type network mode")
		case len(o.HostConfig.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(o.HostConfig.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		}
		return nil
	}
	if mode.IsHost() && len(o.HostConfig.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// wantedNetworks returns the networks to attach at start, by name.
func wantedNetworks(o CreateOptions) map[string]*apinet.EndpointSettings {
	want := map[string]*apinet.EndpointSettings{}
	if o.HostConfig.NetworkMode.IsContainer() {
		return want
	}
	if o.Networking != nil {
		for name, ep := range o.Networking.EndpointsConfig {
			if name == "default" {
				name = "bridge"
			}
			if ep == nil {
				ep = &apinet.EndpointSettings{}
			}
			want[name] = ep
		}
	}
	mode := string(o.HostConfig.NetworkMode)
	if want[mode] == nil {
		want[mode] = &apinet.EndpointSettings{}
	}
	return want
}
