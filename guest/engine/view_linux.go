package engine

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/network"
)

// Inspect describes a container in the API's words.
func (e *Engine) Inspect(ctx context.Context, name string, size bool) (*apicontainer.InspectResponse, error) {
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	rec, st := c.rec, c.rec.State
	config, host := *rec.Config, *rec.HostConfig
	name, mounts := rec.Name, mountPoints(rec)
	execs := c.liveExecs()
	endpoints := maps.Clone(rec.Endpoints)
	c.mu.Unlock()

	host.Links = append(slices.Clone(host.Links), e.linkSpecs(c)...)
	args := slices.Concat(config.Entrypoint, config.Cmd)
	r := &apicontainer.InspectResponse{
		ID: c.id, Created: rec.Created.Format(time.RFC3339Nano), State: apiState(st),
		Image: rec.ImageID, ResolvConfPath: filepath.Join(c.dir, "resolv.conf"), HostnamePath: filepath.Join(c.dir, "hostname"),
		HostsPath: filepath.Join(c.dir, "hosts"), Name: "/" + name, RestartCount: st.RestartCount, Driver: "overlayfs",
		Platform: "linux", HostConfig: &host, Config: &config, Mounts: mounts, ExecIDs: execs,
		ImageManifestDescriptor: rec.Manifest, NetworkSettings: e.networkSettings(c, endpoints),
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: "overlayfs"}}},
	}
	if len(args) > 0 {
		r.Path, r.Args = args[0], args[1:]
	}
	if r.Args == nil {
		r.Args = []string{}
	}
	// The files of the driver local are nobody's to read.
	if c.log != nil && rec.HostConfig.LogConfig.Type != "local" && !rec.State.StartedAt.IsZero() {
		r.LogPath = c.log.Path()
	}
	if size {
		usage, err := e.opts.Images.Usage(ctx, c.id)
		if err != nil {
			return nil, err
		}
		r.SizeRw, r.SizeRootFs = &usage.RW, &usage.RootFS
	}
	return r, nil
}

// liveExecs are the IDs of the container's execs that have not ended. The caller
// holds mu.
func (c *Container) liveExecs() []string {
	var ids []string
	for id, x := range c.execs {
		if !isClosed(x.done) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func apiState(st record.State) *apicontainer.State {
	return &apicontainer.State{
		Status: st.Status.API(), Running: st.Status.Alive() || st.Status == record.Restarting, Paused: st.Status == record.Paused,
		Restarting: st.Status == record.Restarting, OOMKilled: st.OOMKilled, Dead: st.Status == record.Dead,
		Pid: st.PID, ExitCode: st.ExitCode, Error: st.Error,
		StartedAt: st.StartedAt.Format(time.RFC3339Nano), FinishedAt: st.FinishedAt.Format(time.RFC3339Nano),
		Health: st.Health,
	}
}

// mountPoints are a container's mounts without those of --tmpfs, as docker lists
// them.
func mountPoints(rec *record.Record) []apicontainer.MountPoint {
	out := []apicontainer.MountPoint{}
	for _, m := range rec.Mounts {
		if m.Hidden {
			continue
		}
		out = append(out, m.MountPoint)
	}
	slices.SortFunc(out, func(a, b apicontainer.MountPoint) int { return strings.Compare(a.Destination, b.Destination) })
	return out
}

// networkSettings joins what was asked for with what the container has.
func (e *Engine) networkSettings(c *Container, want map[string]*apinet.EndpointSettings) *apicontainer.NetworkSettings {
	s := &apicontainer.NetworkSettings{Ports: apinet.PortMap{}, Networks: map[string]*apinet.EndpointSettings{}}
	for name, ep := range want {
		s.Networks[name] = ep.Copy()
		if n, err := e.opts.Networks.Get(name); err == nil {
			s.Networks[name].NetworkID = n.ID
		}
	}
	for _, ep := range e.opts.Networks.Endpoints(c.id) {
		if s.Networks[ep.NetworkName] == nil {
			s.Networks[ep.NetworkName] = &apinet.EndpointSettings{}
		}
		fillEndpoint(s.Networks[ep.NetworkName], ep)
		s.SandboxID, s.SandboxKey = c.id, ep.NetNS
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Status.Alive() {
		s.Ports = c.portMap()
	}
	return s
}

func fillEndpoint(out *apinet.EndpointSettings, ep network.Endpoint) {
	out.NetworkID, out.EndpointID = ep.NetworkID, ep.ID
	if ep.IPv4.IsValid() {
		out.IPAddress, out.IPPrefixLen, out.Gateway = ep.IPv4.Addr(), ep.IPv4.Bits(), ep.Gateway4
	}
	if ep.IPv6.IsValid() {
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen, out.IPv6Gateway = ep.IPv6.Addr(), ep.IPv6.Bits(), ep.Gateway6
	}
	if hw, err := net.ParseMAC(ep.MAC); err == nil {
		out.MacAddress = apinet.HardwareAddr(hw)
	}
	if apicontainer.NetworkMode(ep.NetworkName).IsUserDefined() {
		out.DNSNames = ep.Names
	}
}

// ListOptions select containers.
type ListOptions struct {
	All     bool // not only running ones
	Limit   int  // the newest; 0: no limit
	Size    bool
	Filters filter.Set
}

// listFilters are the names List takes.
var listFilters = []string{"ancestor", "before", "expose", "exited", "health", "id", "isolation", "is-task", "label",
	"name", "network", "publish", "since", "status", "volume"}

// List describes containers, newest first.
func (e *Engine) List(ctx context.Context, o ListOptions) ([]apicontainer.Summary, error) {
	m, err := e.matcher(ctx, o)
	if err != nil {
		return nil, err
	}
	all, err := e.all(ctx)
	if err != nil {
		return nil, err
	}
	e.addDescendants(ctx, m.images, all)
	links, images := e.linkNames(), map[string]string{}
	out := []apicontainer.Summary{}
	for _, c := range all {
		if o.Limit > 0 && len(out) == o.Limit {
			break
		}
		if !m.match(c) {
			continue
		}
		s := e.summary(c)
		if s.Image != s.ImageID {
			s.Image = imageName(ctx, e.opts.Images, images, s)
		}
		s.Names = append(s.Names, links[c.id]...)
		if o.Size {
			if usage, err := e.opts.Images.Usage(ctx, c.id); err == nil {
				s.SizeRw, s.SizeRootFs = usage.RW, usage.RootFS
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// imageName is what a list calls a container's image: the name it was made by, as
// long as that is still the same image, else the ID. known holds what names mean.
func imageName(ctx context.Context, store Images, known map[string]string, s apicontainer.Summary) string {
	id, ok := known[s.Image]
	if !ok {
		if img, err := store.GetPlatform(ctx, s.Image, nil); err == nil {
			id = img.ID.String()
		}
		known[s.Image] = id
	}
	if id != s.ImageID {
		return s.ImageID
	}
	return s.Image
}

type matcher struct {
	e             *Engine
	o             ListOptions
	before, since *Container
	exited        map[int]bool
	images        map[string]bool // IDs; nil: any
	networks      map[string]bool // names; nil: any

	publish, expose map[string]bool // "80/tcp"
}

func (e *Engine) matcher(ctx context.Context, o ListOptions) (*matcher, error) {
	if err := o.Filters.Check(listFilters...); err != nil {
		return nil, err
	}
	m := &matcher{e: e, o: o}
	var err error
	for _, v := range o.Filters.Values("before") {
		if m.before, err = e.find(ctx, v); err != nil {
			return nil, err
		}
	}
	for _, v := range o.Filters.Values("since") {
		if m.since, err = e.find(ctx, v); err != nil {
			return nil, err
		}
	}
	for _, v := range o.Filters.Values("exited") {
		code, err := strconv.Atoi(v)
		if err != nil {
			return nil, invalid("invalid filter 'exited=%s': %v", v, err)
		}
		if m.exited == nil {
			m.exited = map[int]bool{}
		}
		m.exited[code] = true
	}
	for _, v := range o.Filters.Values("status") {
		if err := apicontainer.ValidateContainerState(apicontainer.ContainerState(v)); err != nil {
			return nil, invalid("invalid filter 'status=%s': %v", v, err)
		}
	}
	for _, v := range o.Filters.Values("health") {
		if err := apicontainer.ValidateHealthStatus(apicontainer.HealthStatus(v)); err != nil {
			return nil, invalid("invalid filter 'health=%s': %v", v, err)
		}
	}
	for _, v := range o.Filters.Values("ancestor") {
		if m.images == nil {
			m.images = map[string]bool{}
		}
		if img, err := e.opts.Images.GetPlatform(ctx, v, nil); err == nil {
			m.images[img.ID.String()] = true
		}
	}
	for _, v := range o.Filters.Values("network") {
		if m.networks == nil {
			m.networks = map[string]bool{}
		}
		if n, err := e.opts.Networks.Get(v); err == nil {
			m.networks[n.Name] = true
		}
	}
	if m.publish, err = portFilter(o.Filters, "publish"); err != nil {
		return nil, err
	}
	if m.expose, err = portFilter(o.Filters, "expose"); err != nil {
		return nil, err
	}
	if task, err := o.Filters.Bool("is-task", false); err != nil {
		return nil, err
	} else if task {
		m.images = map[string]bool{} // nothing is a task of a swarm
	}
	if o.Filters.Has("status") || o.Limit > 0 {
		m.o.All = true
	}
	return m, nil
}

// addDescendants adds the containers' images that were committed, over any number of
// steps, from those in a set.
func (e *Engine) addDescendants(ctx context.Context, set map[string]bool, all []*Container) {
	if len(set) == 0 {
		return
	}
	known := map[string]bool{} // images that were looked at
	for _, c := range all {
		c.mu.Lock()
		id := c.rec.ImageID
		c.mu.Unlock()
		var line []string
		for id != "" && !set[id] && !known[id] {
			known[id] = true
			line = append(line, id)
			img, err := e.opts.Images.GetPlatform(ctx, id, nil)
			if err != nil {
				id = ""
				break
			}
			id = img.Parent.String()
		}
		if set[id] {
			for _, id := range line {
				set[id] = true
			}
		}
	}
}

func (m *matcher) match(c *Container) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec, st, f := c.rec, c.rec.State, m.o.Filters
	health := apicontainer.NoHealthcheck
	if st.Health != nil {
		health = st.Health.Status
	}
	switch {
	case !m.o.All && !st.Status.Alive() && st.Status != record.Restarting,
		m.before != nil && !rec.Created.Before(m.before.rec.Created),
		m.since != nil && !rec.Created.After(m.since.rec.Created),
		m.exited != nil && (st.Status != record.Exited || st.StartedAt.IsZero() || !m.exited[st.ExitCode]),
		m.images != nil && !m.images[rec.ImageID],
		!f.Exact("status", st.Status.String()),
		!f.Exact("health", string(health)),
		!f.Prefix("id", rec.ID),
		!f.Labels("label", rec.Config.Labels),
		!m.matchName(rec.Name),
		!m.matchVolume(rec),
		!m.matchPorts(c.portList()):
		return false
	}
	if m.networks != nil {
		for name := range rec.Endpoints {
			if m.networks[name] {
				return true
			}
		}
		return false
	}
	return true
}

// matchName lets patterns be written with or without docker's slash.
func (m *matcher) matchName(name string) bool {
	f := m.o.Filters
	return f.Pattern("name", name) || f.Pattern("name", "/"+name)
}

func (m *matcher) matchVolume(rec *record.Record) bool {
	f := m.o.Filters
	if !f.Has("volume") {
		return true
	}
	for _, mp := range rec.Mounts {
		if f.Exact("volume", mp.Destination) || mp.Name != "" && f.Exact("volume", mp.Name) || f.Exact("volume", mp.Source) {
			return true
		}
	}
	return false
}

// matchPorts compares with what a running container has: publish with the host's
// ports, expose with its own.
func (m *matcher) matchPorts(ports []apicontainer.PortSummary) bool {
	if len(m.publish)+len(m.expose) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(p apicontainer.PortSummary) bool {
		return m.publish[fmt.Sprintf("%d/%s", p.PublicPort, p.Type)] || m.expose[fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)]
	})
}

// portFilter reads the ports of a filter, by the API's names.
func portFilter(f filter.Set, name string) (map[string]bool, error) {
	ports := map[string]bool{}
	for _, v := range f.Values(name) {
		if strings.Contains(v, ":") {
			return nil, invalid("filter for '%s' should not contain ':': %s", name, v)
		}
		r, err := apinet.ParsePortRange(v)
		if err != nil {
			return nil, invalid("error while looking up for %s %s: %v", name, v, err)
		}
		for p := range r.All() {
			ports[p.String()] = true
		}
	}
	return ports, nil
}

func (e *Engine) summary(c *Container) apicontainer.Summary {
	c.mu.Lock()
	rec, st := c.rec, c.rec.State
	s := apicontainer.Summary{
		ID: c.id, Names: []string{"/" + rec.Name}, Image: rec.Config.Image, ImageID: rec.ImageID, Command: command(rec.Config),
		ImageManifestDescriptor: rec.Manifest,
		Created:                 rec.Created.Unix(), Ports: c.portList(), Labels: maps.Clone(rec.Config.Labels),
		State: st.Status.API(), Status: statusText(st), Mounts: mountPoints(rec),
		Health: &apicontainer.HealthSummary{Status: apicontainer.NoHealthcheck},
	}
	if st.Health != nil {
		s.Health = &apicontainer.HealthSummary{Status: st.Health.Status, FailingStreak: st.Health.FailingStreak}
	}
	s.HostConfig.NetworkMode = string(rec.HostConfig.NetworkMode)
	s.HostConfig.Annotations = rec.HostConfig.Annotations
	endpoints := maps.Clone(rec.Endpoints)
	c.mu.Unlock()
	s.NetworkSettings = &apicontainer.NetworkSettingsSummary{Networks: e.networkSettings(c, endpoints).Networks}
	return s
}

func command(cfg *apicontainer.Config) string {
	args := slices.Concat(cfg.Entrypoint, cfg.Cmd)
	if len(args) == 0 {
		return ""
	}
	parts := []string{args[0]}
	for _, a := range args[1:] {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		parts = append(parts, a)
	}
	return strings.Join(parts, " ")
}

// statusText is the STATUS column of docker ps.
func statusText(st record.State) string {
	switch st.Status {
	case record.Created:
		return "Created"
	case record.Removing:
		return "Removal In Progress"
	case record.Dead:
		return "Dead"
	case record.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, units.HumanDuration(time.Since(st.FinishedAt)))
	case record.Exited:
		if st.FinishedAt.IsZero() {
			return "Created"
		}
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(time.Since(st.FinishedAt)))
	}
	up := "Up " + units.HumanDuration(time.Since(st.StartedAt))
	switch {
	case st.Status == record.Paused:
		return up + " (Paused)"
	case st.Health == nil || st.Health.Status == apicontainer.NoHealthcheck:
		return up
	case st.Health.Status == apicontainer.Starting:
		return up + " (health: starting)"
	}
	return up + " (" + string(st.Health.Status) + ")"
}

// Counts are how many containers are in which state.
type Counts struct{ All, Running, Paused, Stopped int }

// Count counts the containers. It does not wait for Restore.
func (e *Engine) Count() Counts {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.byID))
	e.mu.Unlock()
	n := Counts{All: len(list)}
	for _, c := range list {
		c.mu.Lock()
		switch c.rec.State.Status {
		case record.Running, record.Restarting:
			n.Running++
		case record.Paused:
			n.Paused++
		default:
			n.Stopped++
		}
		c.mu.Unlock()
	}
	return n
}

// ImageUser is a container and the image it was made from, or has mounted.
type ImageUser struct {
	ContainerID string
	ImageID     string
	Image       string // as the user called it
	Manifest    string
	Running     bool
}

// ImageUsers lists which images are in use. It waits for Restore.
func (e *Engine) ImageUsers(ctx context.Context) ([]ImageUser, error) {
	all, err := e.all(ctx)
	if err != nil {
		return nil, err
	}
	var out []ImageUser
	for _, c := range all {
		c.mu.Lock()
		u := ImageUser{ContainerID: c.id, ImageID: c.rec.ImageID, Image: c.rec.Config.Image, Running: c.rec.State.Status.Alive()}
		if c.rec.Manifest != nil {
			u.Manifest = c.rec.Manifest.Digest.String()
		}
		out = append(out, u)
		for _, m := range c.rec.Mounts {
			if m.Type == mount.TypeImage {
				out = append(out, ImageUser{ContainerID: c.id, ImageID: m.ImageID, Image: m.Source, Running: u.Running})
			}
		}
		c.mu.Unlock()
	}
	return out, nil
}

// VolumeUsers returns the IDs of the containers that have a volume.
func (e *Engine) VolumeUsers(volume string) []string {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.byID))
	e.mu.Unlock()
	var ids []string
	for _, c := range list {
		for _, m := range c.rec.Mounts { // never changed
			if m.Name == volume && m.Type == "volume" {
				ids = append(ids, c.id)
				break
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// Matches says whether a container is selected by prune's filters.
func Matches(f filter.Set, until time.Time) func(*Container) bool {
	return func(c *Container) bool { // labels and time are never changed
		return (until.IsZero() || !c.rec.Created.After(until)) && f.Prunes(c.rec.Config.Labels)
	}
}
