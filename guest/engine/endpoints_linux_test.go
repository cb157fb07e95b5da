package engine_test

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
)

// TestWantedNetworks: a container is on what is listed or, where nothing is, on the
// network of its mode; all that is wrong is said at once.
func TestWantedNetworks(t *testing.T) {
	e := enginetest.New(t).Engine()
	create := func(mode string, disabled bool, eps map[string]*apinet.EndpointSettings) (*apicontainer.InspectResponse, error) {
		id, _, err := e.Create(context.Background(), engine.CreateOptions{Config: &apicontainer.Config{Image: "img", Cmd: []string{"x"}, NetworkDisabled: disabled},
			HostConfig: &apicontainer.HostConfig{NetworkMode: apicontainer.NetworkMode(mode)}, Networking: &apinet.NetworkingConfig{EndpointsConfig: eps}})
		if err != nil {
			return nil, err
		}
		return e.Inspect(context.Background(), id, false)
	}
	other, err := create("other", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	otherID := other.NetworkSettings.Networks["other"].NetworkID
	for _, tc := range []struct {
		name     string
		mode     string
		disabled bool
		eps      map[string]*apinet.EndpointSettings
		want     string
	}{
		{"nothing said", "", false, nil, "bridge"},
		{"the mode", "other", false, nil, "other"},
		{"the mode by ID", otherID, false, nil, "other"},
		{"host", "host", false, nil, "host"},
		{"listed, and no mode", "", false, map[string]*apinet.EndpointSettings{"other": {}}, "other"},
		{"listed by ID", "", false, map[string]*apinet.EndpointSettings{otherID: {}}, "other"},
		{"known by its ID", "", false, map[string]*apinet.EndpointSettings{"renamed": {NetworkID: otherID}}, "other"},
		{"default", "", false, map[string]*apinet.EndpointSettings{"default": {}}, "bridge"},
		{"not there yet", "later", false, nil, "later"},
		{"disabled", "", true, nil, "none"},
	} {
		info, err := create(tc.mode, tc.disabled, tc.eps)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := strings.Join(slices.Sorted(maps.Keys(info.NetworkSettings.Networks)), " "); got != tc.want {
			t.Errorf("%s: on %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, tc := range []struct {
		name string
		eps  map[string]*apinet.EndpointSettings
		want string
	}{
		{"nil", map[string]*apinet.EndpointSettings{"other": nil}, "invalid config for network other: EndpointsConfig is nil"},
		{"address on the bridge", map[string]*apinet.EndpointSettings{"bridge": {IPAMConfig: &apinet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("172.17.0.9")}}},
			"user-specified IP address is supported on user-defined networks only"},
		{"alias on the bridge", map[string]*apinet.EndpointSettings{"bridge": {Aliases: []string{"a"}}}, "network-scoped aliases are only supported for user-defined networks"},
		{"wrong families", map[string]*apinet.EndpointSettings{"later": {IPAMConfig: &apinet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("fd00::1"), IPv6Address: netip.MustParseAddr("10.0.0.1")}}},
			"invalid config for network later: invalid endpoint settings:\n* invalid IPv4 address: fd00::1\n* invalid IPv6 address: 10.0.0.1"},
		{"not link-local", map[string]*apinet.EndpointSettings{"later": {IPAMConfig: &apinet.EndpointIPAMConfig{LinkLocalIPs: []netip.Addr{netip.MustParseAddr("169.253.5.5")}}}},
			"invalid link-local IP address: 169.253.5.5"},
		{"sysctl", map[string]*apinet.EndpointSettings{"later": {DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.core.x=1"}}}, "unrecognised network interface sysctl"},
		{"two networks", map[string]*apinet.EndpointSettings{"a": nil, "b": nil}, "* invalid config for network a: EndpointsConfig is nil\n* invalid config for network b"},
	} {
		if _, err := create("", false, tc.eps); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestMayConnect: what a container cannot be on besides what it is on.
func TestMayConnect(t *testing.T) {
	e := enginetest.New(t).Engine()
	create := func(mode string) string {
		id, _, err := e.Create(context.Background(), engine.CreateOptions{Config: &apicontainer.Config{Image: "img", Cmd: []string{"x"}},
			HostConfig: &apicontainer.HostConfig{NetworkMode: apicontainer.NetworkMode(mode)}})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	plain := create("")
	for _, tc := range []struct {
		id, network string
		is          func(error) bool
		want        string
	}{
		{"nobody", "other", errdefs.IsNotFound, "No such container: nobody"},
		{plain, "nothing", errdefs.IsNotFound, "network nothing not found"},
		{plain, "none", errdefs.IsInvalidArgument, "private (none) mode"},
		{create("host"), "other", errdefs.IsInvalidArgument, "sharing network namespace"},
		{create("none"), "other", errdefs.IsInvalidArgument, "private (none) mode"},
		{create("container:" + plain), "other", errdefs.IsInvalidArgument, "sharing network namespace"},
	} {
		if err := e.Connect(context.Background(), tc.network, tc.id, nil); !tc.is(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("connect to %s: %v, want %s", tc.network, err, tc.want)
		}
	}
	if err := e.Disconnect(context.Background(), "other", plain, false); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "is not connected to network other") {
		t.Errorf("disconnect: %v", err)
	}
	for range 2 { // once more is no error while it does not run
		if err := e.Connect(context.Background(), "other", plain, nil); err != nil {
			t.Error(err)
		}
	}
	if err := e.Disconnect(context.Background(), "other", plain, false); err != nil {
		t.Error(err)
	}
}
