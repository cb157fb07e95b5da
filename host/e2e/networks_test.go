//go:build linux

package e2e

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// TestOnParent: containers on macvlan and ipvlan networks find each other by name,
// and no bridge is in between.
func TestOnParent(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	for _, tc := range []struct{ driver, options string }{
		{"macvlan", ""}, {"macvlan", "parent=eth0.7"}, {"ipvlan", "ipvlan_mode=l3"},
	} {
		t.Run(tc.driver+" "+tc.options, func(t *testing.T) {
			name := "lan-" + tc.driver
			t.Cleanup(func() {
				c.exec("rm", "-f", "on-"+name)
				c.exec("network", "rm", name)
			})
			args := []string{"network", "create", "-d", tc.driver, "--subnet", "10.77.0.0/24", "--ip-range", "10.77.0.64/26"}
			if tc.options != "" {
				args = append(args, "-o", tc.options)
			}
			c.ok(t, append(args, name)...)
			c.ok(t, "run", "-d", "--name", "on-"+name, "--network", name, "hello", "sh", "-c", "mkdir /www; echo found >/www/index.html; exec httpd -f -p 80 -h /www")
			eventually(t, "the other container answers", func() bool {
				return strings.Contains(c.exec("run", "--rm", "--network", name, "hello", "timeout", "5", "wget", "-qO-", "http://on-"+name+"/").out, "found")
			})
			n, err := api.NetworkInspect(t.Context(), name, client.NetworkInspectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			want := apinet.SubnetStatus{IPsInUse: 3, DynamicIPsAvailable: 63} // the network, broadcast, one container
			if got := n.Network.Status.IPAM.Subnets[netip.MustParsePrefix("10.77.0.0/24")]; got != want {
				t.Errorf("addresses: %+v, want %+v", got, want)
			}
			c.fails(t, "active endpoints", "network", "rm", name)
		})
	}
}

// TestPortFollows: a published port is there as long as its container is on a
// network that leads out, whichever that is.
func TestPortFollows(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	t.Cleanup(func() {
		c.exec("rm", "-f", "moving")
		c.exec("network", "rm", "inside", "outside")
	})
	c.ok(t, "network", "create", "--internal", "inside")
	c.ok(t, "network", "create", "outside")
	c.ok(t, "run", "-d", "--name", "moving", "--network", "inside", "-p", "127.0.0.1:0:80", "hello", "sh", "-c", "mkdir /www; echo here >/www/index.html; exec httpd -f -p 80 -h /www")
	port := func() string {
		info, err := api.ContainerInspect(t.Context(), "moving", client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range info.Container.NetworkSettings.Ports[apinet.MustParsePort("80/tcp")] {
			return net.JoinHostPort(b.HostIP.String(), b.HostPort)
		}
		return ""
	}
	if at := port(); at != "" {
		t.Errorf("an internal network published %s", at)
	}
	for _, network := range []string{"bridge", "outside"} {
		c.ok(t, "network", "connect", network, "moving")
		if got := get(t, "http://"+port()+"/"); got != "here\n" {
			t.Errorf("by %s: %q", network, got)
		}
		if network == "bridge" {
			c.ok(t, "network", "connect", "outside", "moving")
			before := port()
			c.ok(t, "network", "disconnect", "bridge", "moving")
			if at := port(); at != before {
				t.Errorf("the port moved from %s to %s", before, at)
			}
			if got := get(t, "http://"+port()+"/"); got != "here\n" {
				t.Errorf("after the move: %q", got)
			}
			c.ok(t, "network", "disconnect", "outside", "moving")
			if at := port(); at != "" {
				t.Errorf("no network leads out, but %s is published", at)
			}
			if conn, err := net.Dial("tcp", before); err == nil {
				conn.Close()
				t.Error("the host still listens")
			}
		}
	}
}

// TestConnectUndone: a network that would publish a port which somebody on the host
// has is not joined, and nothing is left of the attempt.
func TestConnectUndone(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	t.Cleanup(func() {
		c.exec("rm", "-f", "unlucky")
		c.exec("network", "rm", "inner", "outer")
	})
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port := other.Addr().String()
	c.ok(t, "network", "create", "--internal", "inner")
	c.ok(t, "network", "create", "outer")
	c.ok(t, "run", "-d", "--name", "unlucky", "--network", "inner", "-p", port+":80", "hello", "sh", "-c", "mkdir /www; echo here >/www/index.html; exec httpd -f -p 80 -h /www")
	hosts := c.ok(t, "exec", "unlucky", "cat", "/etc/hosts")
	c.fails(t, "port is already allocated", "network", "connect", "outer", "unlucky")

	info, err := api.ContainerInspect(t.Context(), "unlucky", client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if nets := info.Container.NetworkSettings.Networks; len(nets) != 1 || nets["inner"] == nil {
		t.Errorf("the container is on %v", nets)
	}
	n, err := api.NetworkInspect(t.Context(), "outer", client.NetworkInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Network.Containers) > 0 {
		t.Errorf("the network has %v", n.Network.Containers)
	}
	if got := c.ok(t, "exec", "unlucky", "cat", "/etc/hosts"); got != hosts {
		t.Errorf("/etc/hosts became\n%s\nfrom\n%s", got, hosts)
	}
	if got := c.ok(t, "exec", "unlucky", "ls", "/sys/class/net"); strings.Contains(got, "eth1") {
		t.Errorf("the container has %s", got)
	}

	other.Close()
	c.ok(t, "network", "connect", "outer", "unlucky")
	if got := get(t, "http://"+port+"/"); got != "here\n" {
		t.Errorf("once the port is free: %q", got)
	}
}

// TestGatewayModes: ports of containers on routed networks are open at their own
// addresses and not on the host, and follow the container to a network of the usual
// kind.
func TestGatewayModes(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	t.Cleanup(func() {
		c.exec("rm", "-f", "direct", "asking")
		c.exec("network", "rm", "by-route", "by-nat")
	})
	const mode = "com.docker.network.bridge.gateway_mode_ipv4"
	c.ok(t, "network", "create", "--subnet", "10.79.0.0/24", "-o", mode+"=routed", "by-route")
	c.ok(t, "network", "create", "-o", mode+"=nat-unprotected", "by-nat")
	c.fails(t, "can only be used for an internal network", "network", "create", "-o", mode+"=isolated", "no-way")
	other, err := net.Listen("tcp", "127.0.0.1:0") // a routed network does not mind who listens on the host
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	host := other.Addr().(*net.TCPAddr).AddrPort()
	c.ok(t, "run", "-d", "--name", "direct", "--network", "name=by-route,ip=10.79.0.9", "-p", host.String()+":80", "hello", "sh", "-c",
		"mkdir /www; echo here >/www/index.html; httpd -p 81 -h /www; exec httpd -f -p 80 -h /www")
	bindings := func() []apinet.PortBinding {
		t.Helper()
		info, err := api.ContainerInspect(t.Context(), "direct", client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return info.Container.NetworkSettings.Ports[apinet.MustParsePort("80/tcp")]
	}
	if got, want := bindings(), []apinet.PortBinding{{HostIP: netip.IPv4Unspecified()}}; !slices.Equal(got, want) {
		t.Errorf("the port is shown as %v, want %v", got, want)
	}
	c.ok(t, "run", "-d", "--name", "asking", "hello", "sleep", "1000000")
	ask := func(at string) string {
		return c.exec("exec", "asking", "timeout", "5", "wget", "-qO-", "http://"+at+"/").out
	}
	eventually(t, "the port answers another network", func() bool { return ask("10.79.0.9:80") == "here\n" })
	if got := ask("10.79.0.9:81"); got != "" {
		t.Errorf("a port that is not published says %q", got)
	}
	other.Close()
	c.ok(t, "network", "connect", "--gw-priority", "1", "by-nat", "direct")
	if got := get(t, "http://"+host.String()+"/"); got != "here\n" {
		t.Errorf("once the default route is by another network, the host gets %q", got)
	}
	if got, want := bindings(), []apinet.PortBinding{{HostIP: host.Addr(), HostPort: strconv.Itoa(int(host.Port()))}, {HostIP: netip.IPv4Unspecified()}}; len(got) != 2 ||
		!slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("on two networks the port is shown as %v, want %v", got, want)
	}
	info, err := api.ContainerInspect(t.Context(), "direct", client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	open := info.Container.NetworkSettings.Networks["by-nat"].IPAddress.String()
	for _, at := range []string{"10.79.0.9:80", open + ":80", open + ":81"} {
		if got := ask(at); got != "here\n" {
			t.Errorf("%s says %q", at, got)
		}
	}
	if got := ask("10.79.0.9:81"); got != "" {
		t.Errorf("a port that is not published says %q", got)
	}
}

// TestRoutedIPv4 publishes by IPv6 only, where IPv4 is routed.
func TestRoutedIPv4(t *testing.T) {
	c := machine(t).berth()
	t.Cleanup(func() {
		c.exec("rm", "-f", "six")
		c.exec("network", "rm", "half-routed")
	})
	const mode = "com.docker.network.bridge.gateway_mode_"
	c.ok(t, "network", "create", "--ipv6", "--subnet", "10.79.1.0/24", "--subnet", "fd79:1::/64", "-o", mode+"ipv4=routed", "-o", mode+"ipv6=nat", "half-routed")
	c.ok(t, "run", "-d", "--name", "six", "--network", "half-routed", "-p", "80", "hello", "sh", "-c",
		"mkdir /www; echo here >/www/index.html; exec httpd -f -p [::]:80 -h /www")
	shown := strings.Fields(c.ok(t, "port", "six", "80"))
	i := slices.IndexFunc(shown, func(s string) bool { return strings.HasPrefix(s, "[::]:") })
	if i < 0 {
		t.Fatalf("published at %q", shown)
	}
	port := strings.TrimPrefix(shown[i], "[::]:")
	if got := get(t, "http://[::1]:"+port+"/"); got != "here\n" {
		t.Errorf("by IPv6: %q", got)
	}
	free, err := net.Listen("tcp4", "0.0.0.0:"+port)
	if err != nil {
		t.Fatalf("the port is taken for IPv4 too: %v", err)
	}
	free.Close()
}

// TestEndpointSettings: what the API lets an endpoint ask for.
func TestEndpointSettings(t *testing.T) {
	h := machine(t)
	c, api := h.berth(), h.engine(t)
	t.Cleanup(func() { c.exec("network", "rm", "fine", "config") })
	c.ok(t, "network", "create", "--config-only", "--subnet", "10.78.0.0/24", "config")
	c.ok(t, "network", "create", "--config-from", "config", "fine")
	out := c.ok(t, "run", "--rm", "--network", "name=fine,ip=10.78.0.9,driver-opt=com.docker.network.endpoint.ifname=up0,"+
		"driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1", "hello", "sh", "-c",
		"ip -o -4 addr show up0; cat /proc/sys/net/ipv4/conf/up0/log_martians")
	if !strings.Contains(out, "10.78.0.9/24") || !strings.HasSuffix(out, "\n1") {
		t.Errorf("in the container: %q", out)
	}
	for _, bad := range []struct {
		settings apinet.EndpointSettings
		want     string
	}{
		{apinet.EndpointSettings{IPAMConfig: &apinet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.99.0.1")}}, "no configured subnet contains IP address 10.99.0.1"},
		{apinet.EndpointSettings{DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.ipv4.conf.eth0.x=1"}}, "unrecognised network interface sysctl"},
	} {
		_, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: "hello",
			NetworkingConfig: &apinet.NetworkingConfig{EndpointsConfig: map[string]*apinet.EndpointSettings{"fine": &bad.settings}}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "invalid config for network fine: invalid endpoint settings:\n"+bad.want) {
			t.Errorf("%v, want %s", err, bad.want)
		}
	}
	c.fails(t, "is in use", "network", "rm", "config")
}
