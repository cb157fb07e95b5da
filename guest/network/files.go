package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// EmbeddedDNS is the address of the DNS server in containers on user-defined
// networks.
var EmbeddedDNS = netip.MustParseAddr("127.0.0.11")

// HostEntry is one line of /etc/hosts.
type HostEntry struct {
	Addr  netip.Addr
	Names []string
}

// Hosts returns the content of a container's /etc/hosts: the loopback's lines, of
// IPv6 where the container has it, then a line for each of its own addresses with its
// host name (and its short form), then extra.
func Hosts(hostname, domainname string, ipv6 bool, eps []Endpoint, extra []HostEntry) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n")
	if ipv6 {
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
			"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	writeHosts(&b, extra)
	name := hostname
	if domainname != "" {
		name += "." + domainname
	}
	if short, _, long := strings.Cut(name, "."); long { // a host name may hold its domain
		name += " " + short
	}
	if name == "" {
		return b.Bytes()
	}
	for _, ep := range eps {
		for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if p.IsValid() {
				fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), name)
			}
		}
	}
	return b.Bytes()
}

// HostsLike returns the content of /etc/hosts of a container that has the machine's
// own network: machine, which is the content of the machine's, and the entries.
func HostsLike(machine []byte, extra []HostEntry) []byte {
	var b bytes.Buffer
	b.Write(machine)
	if len(machine) > 0 && machine[len(machine)-1] != '\n' {
		b.WriteByte('\n')
	}
	writeHosts(&b, extra)
	return b.Bytes()
}

func writeHosts(b *bytes.Buffer, entries []HostEntry) {
	for _, e := range entries {
		fmt.Fprintf(b, "%s\t%s\n", e.Addr, strings.Join(e.Names, " "))
	}
}

// DNSConfig is what a user may say about a container's /etc/resolv.conf.
type DNSConfig struct {
	Servers []netip.Addr // --dns
	Search  []string     // --dns-search; "." means none
	Options []string     // --dns-option
}

// ResolvConf returns the content of a container's /etc/resolv.conf. With
// embedded it names the DNS server at 127.0.0.11, else cfg's servers or, where
// there are none, the machine's.
func ResolvConf(cfg DNSConfig, machine []netip.Addr, embedded bool) []byte {
	var b bytes.Buffer
	servers, options := cfg.Servers, cfg.Options
	if len(servers) == 0 {
		servers = machine
	}
	if embedded {
		servers = []netip.Addr{EmbeddedDNS}
		if !hasOption(options, "ndots") {
			options = append(options[:len(options):len(options)], "ndots:0")
		}
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(cfg.Search) > 0 && !(len(cfg.Search) == 1 && cfg.Search[0] == ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(cfg.Search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}

func hasOption(options []string, name string) bool {
	for _, o := range options {
		if o == name || strings.HasPrefix(o, name+":") {
			return true
		}
	}
	return false
}
