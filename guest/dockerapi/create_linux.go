package dockerapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/images"
)

func (s *Server) containerCreate(c *call) error {
	var body json.RawMessage
	if err := c.read(&body, true); err != nil {
		return err
	}
	if len(body) == 0 {
		return invalid("invalid JSON: EOF")
	}
	req, warnings, err := decodeCreate(body, c.version)
	if err != nil {
		return err
	}
	platform, err := images.ParsePlatform(c.query("platform"))
	if err != nil {
		return err
	}
	id, more, err := s.cfg.Engine.Create(c.Context(), engine.CreateOptions{Name: c.query("name"), Platform: platform,
		Config: req.Config, HostConfig: req.HostConfig, Networking: req.NetworkingConfig, FlatReadOnly: c.version < 44})
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apicontainer.CreateResponse{ID: id, Warnings: append(append([]string{}, more...), warnings...)})
}

// decodeCreate reads the body of a create request and brings what older versions
// of the API had into today's shape. All parts of the request are there.
func decodeCreate(body []byte, v version) (req apicontainer.CreateRequest, warnings []string, err error) {
	var old struct {
		MacAddress network.HardwareAddr
		HostConfig struct{ Capabilities []string }
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return req, nil, invalid("invalid JSON: %v", err)
	}
	if req.Config == nil {
		return req, nil, invalid("config cannot be empty in order to create a container")
	}
	if req.HostConfig == nil {
		req.HostConfig = &apicontainer.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	h, endpoints := req.HostConfig, req.NetworkingConfig.EndpointsConfig
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
		if ep, ok := endpoints[network.NetworkDefault]; ok {
			delete(endpoints, network.NetworkDefault)
			endpoints[network.NetworkBridge] = ep
		}
	}
	if err := oldCreate(&req, v); err != nil {
		return req, nil, err
	}
	if v < 52 {
		_ = json.Unmarshal(body, &old) // what it cannot read was not meant
		if len(old.HostConfig.Capabilities) > 0 && v == 40 {
			return req, nil, invalid("the HostConfig.Capabilities field is not supported by this daemon; use CapAdd and CapDrop to set capabilities")
		}
		warning, err := moveMAC(&req, old.MacAddress, v)
		if err != nil {
			return req, nil, err
		}
		warnings = append(warnings, warning...)
	}
	moved, err := moveSysctls(&req, v)
	if err != nil {
		return req, nil, err
	}
	warnings = append(warnings, moved...)
	if v >= 48 && h.VolumeDriver != "" && slices.ContainsFunc(h.Mounts, needsDriver) {
		warnings = append(warnings, "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. "+
			"Use '--mount type=volume,volume-driver=...' instead")
	}
	return req, append(warnings, fillBindings(h, v)...), nil
}

func needsDriver(m mount.Mount) bool {
	o := m.VolumeOptions
	return m.Type == mount.TypeVolume && (o == nil || o.DriverConfig == nil || o.DriverConfig.Name == "")
}

// oldCreate takes out what the request's version of the API did not have, or
// refuses it where it cannot have been meant otherwise.
func oldCreate(req *apicontainer.CreateRequest, v version) error {
	h := req.HostConfig
	if v < 42 {
		h.ConsoleSize = [2]uint{}
	}
	if v < 43 {
		h.Annotations = nil
	}
	if v < 44 && req.Healthcheck != nil {
		req.Healthcheck.StartInterval = 0
	}
	if endpoints := req.NetworkingConfig.EndpointsConfig; v < 44 && len(endpoints) > 1 {
		var names []string
		for name := range endpoints {
			names = append(names, name)
		}
		slices.Sort(names)
		return invalid("Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", "))
	}
	for _, ep := range req.NetworkingConfig.EndpointsConfig {
		if v < 48 && ep != nil {
			ep.GwPriority = 0
		}
	}
	for i := range h.Mounts {
		if err := oldMount(&h.Mounts[i], v); err != nil {
			return err
		}
	}
	return nil
}

func oldMount(m *mount.Mount, v version) error {
	if v < 42 {
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
		if m.BindOptions != nil {
			m.BindOptions.CreateMountpoint = false
		}
	}
	for _, o := range []struct {
		name string
		kind mount.Type
		set  bool
	}{
		{"VolumeOptions", mount.TypeVolume, m.VolumeOptions != nil},
		{"BindOptions", mount.TypeBind, m.BindOptions != nil},
		{"TmpfsOptions", mount.TypeTmpfs, m.TmpfsOptions != nil},
	} {
		if v >= 42 && o.set && o.kind != m.Type {
			return invalid("%s must not be specified on mount type %q", o.name, m.Type)
		}
	}
	switch {
	case v < 44 && m.Type == mount.TypeBind && m.BindOptions != nil && m.BindOptions.ReadOnlyForceRecursive:
		return invalid("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
	case v < 45 && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
		return invalid("VolumeOptions.Subpath needs API v1.45 or newer")
	case v < 48 && m.Type == mount.TypeImage:
		return invalid(`Mount type "Image" needs API v1.48 or newer`)
	}
	return nil
}

// moveMAC gives the container's MAC address, which has been one of its networks'
// since 1.44, to the network that the container's mode names.
func moveMAC(req *apicontainer.CreateRequest, mac network.HardwareAddr, v version) (warnings []string, err error) {
	mode, endpoints := req.HostConfig.NetworkMode, req.NetworkingConfig.EndpointsConfig
	if len(mac) == 0 {
		for _, ep := range endpoints {
			if v < 44 && ep != nil {
				ep.MacAddress = nil // a field that was not there
			}
		}
		return nil, nil
	}
	named := mode.IsBridge() || mode.IsUserDefined()
	if !named && v < 44 {
		return nil, invalid("conflicting options: mac-address and the network mode")
	}
	if v >= 44 {
		warnings = []string{"The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."}
	}
	if !named {
		return warnings, nil
	}
	ep := mainEndpoint(req, v)
	if ep == nil {
		return nil, invalid("unable to migrate container-wide MAC address to a specific network: %s", modeUnlisted)
	}
	if v >= 44 && len(ep.MacAddress) > 0 && !slices.Equal(ep.MacAddress, mac) {
		return nil, invalid("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	}
	ep.MacAddress = mac
	return warnings, nil
}

// modeUnlisted is what is wrong where mainEndpoint returns nil.
const modeUnlisted = "HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"

// mainEndpoint returns the settings of the network that the container's mode names,
// making them where no network is listed. It returns nil when only others are.
func mainEndpoint(req *apicontainer.CreateRequest, v version) *network.EndpointSettings {
	name, endpoints := req.HostConfig.NetworkMode.NetworkName(), req.NetworkingConfig.EndpointsConfig
	switch {
	case len(endpoints) == 0:
		endpoints = map[string]*network.EndpointSettings{name: {}}
		req.NetworkingConfig.EndpointsConfig = endpoints
	case v < 44: // there is one, whatever it is called
		for name = range endpoints {
		}
		if endpoints[name] == nil {
			endpoints[name] = &network.EndpointSettings{}
		}
	}
	return endpoints[name]
}

// optionSysctls is the endpoint's option that interfaces' sysctls have been since
// 1.46.
const optionSysctls = "com.docker.network.endpoint.sysctls"

// moveSysctls gives the container's sysctls of eth0 to the network that the
// container's mode names: which interface has that name is no longer certain.
func moveSysctls(req *apicontainer.CreateRequest, v version) (warnings []string, err error) {
	h := req.HostConfig
	if !h.NetworkMode.IsPrivate() {
		return nil, nil
	}
	var names, moved []string
	for _, name := range slices.Sorted(maps.Keys(h.Sysctls)) {
		part := strings.SplitN(name, ".", 5)
		if len(part) < 5 || part[0] != "net" || !strings.HasPrefix(part[3], "eth") {
			continue
		}
		if v >= 48 {
			return nil, invalid("interface specific sysctl setting %q must be supplied using driver option '%s'", name, optionSysctls)
		}
		if part[3] != "eth0" {
			return nil, invalid("unable to determine network endpoint for sysctl %s, use driver option '%s' to set per-interface sysctls", name, optionSysctls)
		}
		names = append(names, name)
		moved = append(moved, "net."+part[1]+"."+part[2]+".IFNAME."+part[4]+"="+h.Sysctls[name])
	}
	if len(names) == 0 {
		return nil, nil
	}
	ep := mainEndpoint(req, v)
	if ep == nil {
		return nil, invalid("unable to find a network for sysctl %s: %s", names[0], modeUnlisted)
	}
	list := strings.Join(moved, ",")
	warnings = []string{fmt.Sprintf("Migrated sysctl %q to DriverOpts{%q:%q}.", strings.Join(names, ","), optionSysctls, list)}
	if own := ep.DriverOpts[optionSysctls]; own != "" { // what the endpoint itself says comes last, and so wins
		list += "," + own
	}
	if ep.DriverOpts == nil {
		ep.DriverOpts = map[string]string{}
	}
	ep.DriverOpts[optionSysctls] = list
	for _, name := range names {
		delete(h.Sysctls, name)
	}
	return warnings, nil
}

// fillBindings makes an empty list of a port's bindings one for any port of the
// host, as it has always been.
func fillBindings(h *apicontainer.HostConfig, v version) (warnings []string) {
	var empty []string
	for port, bindings := range h.PortBindings {
		if len(bindings) == 0 {
			h.PortBindings[port] = []network.PortBinding{{}}
			empty = append(empty, port.String())
		}
	}
	if len(empty) == 0 || v < 52 {
		return nil
	}
	slices.Sort(empty)
	return []string{"Following container port(s) have an empty list of port-bindings: " + strings.Join(empty, ", ") +
		". Such bindings will be discarded in a future version."}
}
