package networks

import (
	"context"
	"net"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/engine/images"
	"github.com/berthvm/berth/guest/network"
)

// Service is the networks of one engine. It is safe for concurrent use.
type Service struct {
	manager *network.Manager
	engine  *engine.Engine
}

// New returns the service of a manager.
func New(m *network.Manager, e *engine.Engine) *Service { return &Service{m, e} }

func (s *Service) event(action events.Action, n network.Network) {
	s.engine.Journal.Publish(events.Message{Type: events.NetworkEventType, Action: action, Scope: "local",
		Actor: events.Actor{ID: n.ID, Attributes: map[string]string{"name": n.Name, "type": n.Driver}}})
}

func api(n network.Network) apinet.Network {
	out := apinet.Network{Name: n.Name, ID: n.ID, Created: n.Created, Scope: n.Scope(), Driver: n.Driver,
		EnableIPv4: !n.NoIPv4, EnableIPv6: n.IPv6, Internal: n.Internal, Attachable: n.Attachable,
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
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	for _, t := range f.Values("type") {
		if t != "builtin" && t != "custom" {
			return nil, errdefs.ErrInvalidArgument.WithMessage("invalid filter: 'type'='" + t + "'")
		}
	}
	out := []apinet.Summary{}
	for _, n := range s.manager.List() {
		kind := "custom"
		if n.Predefined() {
			kind = "builtin"
		}
		if !f.Exact("driver", n.Driver) || !f.Prefix("id", n.ID) || !f.Labels("label", n.Labels) || !f.Pattern("name", n.Name) ||
			!f.Exact("scope", n.Scope()) || !f.Exact("type", kind) {
			continue
		}
		if f.Has("dangling") {
			eps, err := s.manager.NetworkEndpoints(n.ID)
			if err != nil || (n.UserDefined() && len(eps) == 0) != dangling {
				continue
			}
		}
		out = append(out, apinet.Summary{Network: api(n)})
	}
	return out, nil
}

// Inspect describes one network and who is on it.
func (s *Service) Inspect(_ context.Context, name string) (*apinet.Inspect, error) {
	n, err := s.manager.Get(name)
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
	return out, nil
}

// Create makes a network.
func (s *Service) Create(ctx context.Context, req apinet.CreateRequest) (string, error) {
	switch {
	case req.Ingress, req.Scope == "swarm":
		return "", errdefs.ErrPermissionDenied.WithMessage("cannot create a swarm network: this node is not a swarm manager")
	case req.ConfigOnly, req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return "", errdefs.ErrNotImplemented.WithMessage("config-only networks are not supported")
	}
	cfg := network.Config{Name: req.Name, Driver: req.Driver, Internal: req.Internal, Attachable: req.Attachable,
		NoIPv4: req.EnableIPv4 != nil && !*req.EnableIPv4, IPv6: req.EnableIPv6 != nil && *req.EnableIPv6,
		Options: req.Options, Labels: req.Labels}
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

// Prune removes the user's networks that nobody is on.
func (s *Service) Prune(ctx context.Context, f filter.Set) (*apinet.PruneReport, error) {
	if err := f.Check("label", "label!", "until"); err != nil {
		return nil, err
	}
	report := &apinet.PruneReport{NetworksDeleted: []string{}}
	for _, n := range s.manager.List() {
		if n.Predefined() || !f.Labels("label", n.Labels) {
			continue
		}
		if slices.ContainsFunc(f.Values("label!"), func(w string) bool { return (filter.Set{"l": {w: true}}).Labels("l", n.Labels) }) {
			continue
		}
		for _, v := range f.Values("until") {
			until, err := images.Until(v)
			if err != nil {
				return nil, err
			}
			if n.Created.After(until) {
				goto next
			}
		}
		if s.engine.NetworkUsers(n.Name) == 0 && s.Remove(ctx, n.ID) == nil {
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		}
	next:
	}
	return report, nil
}
