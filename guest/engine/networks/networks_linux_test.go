package networks_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/engine/networks"
	"github.com/berthvm/berth/guest/network"
)

func open(t *testing.T) (*networks.Service, *engine.Engine) {
	t.Helper()
	e := enginetest.New(t).Engine()
	return enginetest.Networks(t, e), e
}

func yes() *bool { v := true; return &v }
func no() *bool  { v := false; return &v }

func set(t *testing.T, pairs ...string) filter.Set {
	t.Helper()
	f := filter.Set{}
	for i := 0; i < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}

func TestCreateAndInspect(t *testing.T) {
	s, _ := open(t)
	create := func(req apinet.CreateRequest) *apinet.Inspect {
		t.Helper()
		if _, err := s.Create(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		n, err := s.Inspect(t.Context(), req.Name, networks.InspectOptions{Status: true})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := create(apinet.CreateRequest{Name: "six", EnableIPv6: yes(), EnableIPv4: no(), Options: map[string]string{network.OptionIPv4: "true"}})
	if n.EnableIPv4 || !n.EnableIPv6 || len(n.IPAM.Config) != 1 || !n.IPAM.Config[0].Subnet.Addr().Is6() || n.Options[network.OptionIPv4] != "" {
		t.Errorf("%+v", n.Network)
	}
	n = create(apinet.CreateRequest{Name: "opts", Options: map[string]string{network.OptionIPv6: "true"}})
	if !n.EnableIPv4 || !n.EnableIPv6 || n.Options[network.OptionIPv6] != "true" {
		t.Errorf("%+v", n.Network)
	}
	subnet := netip.MustParsePrefix("192.168.77.0/24")
	n = create(apinet.CreateRequest{Name: "counted", IPAM: &apinet.IPAM{Config: []apinet.IPAMConfig{{Subnet: subnet, IPRange: netip.MustParsePrefix("192.168.77.64/31"),
		Gateway: netip.MustParseAddr("192.168.77.1"), AuxAddress: map[string]netip.Addr{"in": netip.MustParseAddr("192.168.77.65"), "out": netip.MustParseAddr("192.168.77.128")}}}}})
	if got := n.Status.IPAM.Subnets[subnet]; got != (apinet.SubnetStatus{IPsInUse: 5, DynamicIPsAvailable: 1}) {
		t.Errorf("addresses: %+v", got)
	}
	create(apinet.CreateRequest{Name: "config", ConfigOnly: true, Labels: map[string]string{"a": "b"}})
	n = create(apinet.CreateRequest{Name: "configured", ConfigFrom: &apinet.ConfigReference{Network: "config"}})
	if n.ConfigFrom.Network != "config" || n.Labels["a"] != "b" || n.Driver != "bridge" {
		t.Errorf("%+v", n.Network)
	}
	if err := s.Remove(t.Context(), "config"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), `configuration network "config" is in use`) {
		t.Errorf("removing settings in use: %v", err)
	}
	if _, err := s.Inspect(t.Context(), "six", networks.InspectOptions{Scope: "swarm"}); !errdefs.IsNotFound(err) {
		t.Errorf("another scope: %v", err)
	}
	for _, tc := range []struct {
		req  apinet.CreateRequest
		is   func(error) bool
		want string
	}{
		{apinet.CreateRequest{Name: "six"}, errdefs.IsAlreadyExists, "network with name six already exists"},
		{apinet.CreateRequest{Name: "host"}, errdefs.IsPermissionDenied, "operation is not permitted on predefined host network "},
		{apinet.CreateRequest{Name: "x", Driver: "overlay"}, errdefs.IsPermissionDenied, "This node is not a swarm manager"},
		{apinet.CreateRequest{Name: "x", Scope: "swarm"}, errdefs.IsPermissionDenied, "swarm is not active"},
		{apinet.CreateRequest{Name: "x", Ingress: true}, errdefs.IsPermissionDenied, "Ingress network"},
		{apinet.CreateRequest{Name: "x", Driver: "nope"}, errdefs.IsNotFound, "plugin not found"},
		{apinet.CreateRequest{Name: "x", ConfigFrom: &apinet.ConfigReference{Network: "six"}}, errdefs.IsNotFound, `configuration network "six" does not exist`},
		{apinet.CreateRequest{Name: "x", Options: map[string]string{network.OptionIPv6: "perhaps"}}, errdefs.IsInvalidArgument, "is not a valid bool"},
	} {
		if _, err := s.Create(t.Context(), tc.req); !tc.is(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc.req, err)
		}
	}
}

func TestListAndPrune(t *testing.T) {
	s, e := open(t)
	_, sub, err := e.Journal.Subscribe(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for name, labels := range map[string]map[string]string{"one": {"a": "1"}, "two": {"a": "2", "keep": ""}, "three": nil} {
		if _, err := s.Create(t.Context(), apinet.CreateRequest{Name: name, Labels: labels}); err != nil {
			t.Fatal(err)
		}
	}
	one, err := s.Inspect(t.Context(), "one", networks.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		filter []string
		want   string // names
	}{
		{nil, "bridge host none one three two"},
		{[]string{"name", "^t"}, "three two"},
		{[]string{"driver", "host"}, "host"},
		{[]string{"type", "builtin"}, "bridge host none"},
		{[]string{"type", "custom", "label", "a"}, "one two"},
		{[]string{"label", "a=1"}, "one"},
		{[]string{"id", one.ID[:9]}, "one"},
		{[]string{"scope", "swarm"}, ""},
		{[]string{"dangling", "true"}, "one three two"},
		{[]string{"dangling", "0"}, "bridge host none"},
	} {
		list, err := s.List(t.Context(), set(t, tc.filter...))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.filter, got, tc.want)
		}
	}
	for _, bad := range [][]string{{"nope", "x"}, {"type", "x"}, {"dangling", "perhaps"}, {"dangling", "true", "dangling", "false"}} {
		if _, err := s.List(t.Context(), set(t, bad...)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	for _, bad := range [][]string{{"name", "x"}, {"until", "perhaps"}, {"until", "1h", "until", "2h"}} {
		if _, err := s.Prune(t.Context(), set(t, bad...)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("prune %v: %v", bad, err)
		}
	}
	prune := func(want []string, pairs ...string) {
		t.Helper()
		report, err := s.Prune(t.Context(), set(t, pairs...))
		if err != nil || !slices.Equal(report.NetworksDeleted, want) {
			t.Errorf("prune %v: %v, %v", pairs, report, err)
		}
	}
	prune(nil, "until", "1h")
	prune([]string{"one", "three"}, "label!", "keep")
	prune([]string{"two"})
	var got []string
	for len(got) < 9 {
		m := <-sub.C
		if m.Type == events.NetworkEventType {
			got = append(got, string(m.Action))
		}
	}
	if want := []string{"create", "create", "create", "prune", "destroy", "destroy", "prune", "destroy", "prune"}; !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}
