package networks

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/network"
)

// Service is the networks of one engine. It is safe for concurrent use.
type Service struct {
	manager *network.Manager
	engine  *engine.Engine
}

// New returns the service of a manager.
func New(m *network.Manager, e *engine.Engine) *Service { return &Service{m, e} }

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func forbidden(text string) error { return errdefs.ErrPermissionDenied.WithMessage(text) }

func (s *Service) event(action events.Action, n network.Network) {
	s.engine.Journal.Publish(events.Message{Type: events.NetworkEventType, Action: action, Scope: "local",
		Actor: events.Actor{ID: n.ID, Attributes: map[string]string{"name": n.Name, "type": n.Driver}}})
}

func api(n network.Network) apinet.Network {
	out := apinet.Network{Name: n.Name, ID: n.ID, Created: n.Created, Scope: n.Scope(), Driver: n.Driver,
		EnableIPv4: !n.NoIPv4, EnableIPv6: n.IPv6, Internal: n.Internal, Attachable: n.Attachable,
		ConfigOnly: n.ConfigOnly, ConfigFrom: apinet.ConfigReference{Network: n.ConfigFrom},
		Options: n.Options, Labels: n.Labels, IPAM: apinet.IPAM{Driver: "default", Options: n.IPAMOpts, Config: []apinet.IPAMConfig{}}}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, sub := range n.Subnets {
		out.IPAM.Config = append(out.IPAM.Config, apinet.IPAMConfig{Subnet: sub.Subnet, IPRange: sub.Range, Gateway: sub.Gateway, AuxAddress: sub.Aux})
	}
	return out
}

// List describes the networks that match.
func (s *Service) List(_ context.Context, f filter.Set) ([]apinet.Summary, error) {
	if err := f.Check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := one(f, "dangling")
	if err != nil {
		return nil, err
	}
	for _, t := range f.Values("type") {
		if t != "builtin" && t != "custom" {
			return nil, invalid("invalid filter: 'type'='%s'", t)
		}
	}
	out := []apinet.Summary{}
	for _, n := range s.manager.List() {
		kind := "custom"
		if n.Predefined() {
			kind = "builtin"
		}
		if !f.Exact("driver", n.Driver) || !f.Pattern("id", n.ID) || !f.Labels("label", n.Labels) || !f.Pattern("name", n.Name) ||
			!f.Exact("scope", n.Scope()) || !f.Exact("type", kind) || f.Has("dangling") && s.unused(n) != dangling {
			continue
		}
		out = append(out, apinet.Summary{Network: api(n)})
	}
	return out, nil
}

// one is the truth value of a filter that may be given once.
func one(f filter.Set, name string) (bool, error) {
	switch values := f.Values(name); {
	case len(values) == 0:
		return false, nil
	case len(values) > 1:
		return false, invalid("got more than one value for filter key %q", name)
	case values[0] == "1" || values[0] == "true":
		return true, nil
	case values[0] == "0" || values[0] == "false":
		return false, nil
	}
	return false, invalid(`invalid value for filter '%s', must be "true" (or "1"), or "false" (or "0")`, name)
}

// unused reports whether nobody is on a user's network.
func (s *Service) unused(n network.Network) bool {
	eps, err := s.manager.NetworkEndpoints(n.ID)
	return err == nil && n.UserDefined() && len(eps) == 0
}

// InspectOptions say what Inspect shows.
type InspectOptions struct {
	Scope  string // only a network of this scope; "" is any
	Status bool   // how many addresses are in use
}

// Inspect describes one network and who is on it.
func (s *Service) Inspect(_ context.Context, name string, o InspectOptions) (*apinet.Inspect, error) {
	n, err := s.manager.Get(name)
	if err == nil && o.Scope != "" && o.Scope != n.Scope() {
		err = errdefs.ErrNotFound.WithMessage("network " + name + " not found")
	}
	if err != nil {
		return nil, err
	}
	eps, err := s.manager.NetworkEndpoints(n.ID)
	if err != nil {
		return nil, err
	}
	out := &apinet.Inspect{Network: api(n), Containers: map[string]apinet.EndpointResource{}}
	for _, ep := range eps {
		r := apinet.EndpointResource{Name: ep.ContainerName, EndpointID: ep.ID, IPv4Address: ep.IPv4, IPv6Address: ep.IPv6}
		if hw, err := net.ParseMAC(ep.MAC); err == nil {
			r.MacAddress = apinet.HardwareAddr(hw)
		}
		out.Containers[ep.ContainerID] = r
	}
	if o.Status {
		usage, err := s.manager.Usage(n.ID)
		if err != nil {
			return nil, err
		}
		subnets := map[netip.Prefix]apinet.SubnetStatus{}
		for p, u := range usage {
			subnets[p] = apinet.SubnetStatus{IPsInUse: u.InUse, DynamicIPsAvailable: u.Available}
		}
		out.Status = &apinet.Status{IPAM: apinet.IPAMStatus{Subnets: subnets}}
	}
	return out, nil
}

// Create makes a network.
func (s *Service) Create(ctx context.Context, req apinet.CreateRequest) (string, error) {
	switch {
	case req.Driver == "overlay":
		return "", forbidden(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	case req.Ingress:
		return "", forbidden("Ingress network can only be global scope network")
	case req.Scope == "swarm":
		return "", forbidden("cannot create a swarm scoped network when swarm is not active")
	case req.ConfigOnly && (req.Scope != "" || req.Ingress):
		return "", forbidden("configuration network can only contain network specific fields. " +
			"Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	}
	cfg := network.Config{Name: req.Name, Driver: req.Driver, Internal: req.Internal, Attachable: req.Attachable, ConfigOnly: req.ConfigOnly,
		Options: maps.Clone(req.Options), Labels: req.Labels}
	if req.ConfigFrom != nil {
		cfg.ConfigFrom = req.ConfigFrom.Network
	}
	v4, err := family(req.EnableIPv4, cfg.Options, network.OptionIPv4, true)
	if err != nil {
		return "", err
	}
	if cfg.IPv6, err = family(req.EnableIPv6, cfg.Options, network.OptionIPv6, false); err != nil {
		return "", err
	}
	cfg.NoIPv4 = !v4
	if req.IPAM != nil {
		cfg.IPAMDriver, cfg.IPAMOpts = req.IPAM.Driver, req.IPAM.Options
		for _, c := range req.IPAM.Config {
			cfg.Subnets = append(cfg.Subnets, network.Subnet{Subnet: c.Subnet, Range: c.IPRange, Gateway: c.Gateway, Aux: c.AuxAddress})
		}
	}
	n, err := s.manager.Create(ctx, cfg)
	if err != nil {
		return "", err
	}
	s.event(events.ActionCreate, n)
	return n.ID, nil
}

// family says whether a network has a family of addresses: as the request says, or
// else an option of the driver's, which the request overrules.
func family(asked *bool, options map[string]string, option string, otherwise bool) (bool, error) {
	if asked != nil {
		delete(options, option)
		return *asked, nil
	}
	v, ok := options[option]
	if !ok {
		return otherwise, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalid("driver-opt %q is not a valid bool", option)
	}
	return on, nil
}

// Remove removes a network that nobody is on.
func (s *Service) Remove(ctx context.Context, name string) error {
	n, err := s.manager.Get(name)
	if err != nil {
		return err
	}
	if err := s.manager.Remove(ctx, n.ID); err != nil {
		return err
	}
	s.event(events.ActionDestroy, n)
	return nil
}

// Prune removes the user's networks that nothing is attached to. A container that
// does not run is attached to none, though it may want one.
func (s *Service) Prune(ctx context.Context, f filter.Set) (*apinet.PruneReport, error) {
	if err := f.Check("label", "label!", "until"); err != nil {
		return nil, err
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return nil, err
	}
	report := &apinet.PruneReport{}
	for _, n := range s.manager.List() {
		if n.Predefined() || n.ConfigOnly || !f.Prunes(n.Labels) ||
			!until.IsZero() && n.Created.After(until) {
			continue
		}
		if s.Remove(ctx, n.ID) == nil {
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		}
	}
	s.engine.Journal.Publish(events.Message{Type: events.NetworkEventType, Action: events.ActionPrune, Scope: "local",
		Actor: events.Actor{Attributes: map[string]string{"reclaimed": "0"}}})
	return report, nil
}
