//go:build unix

package usernet

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// hostServers are the host's DNS servers, read again whenever /etc/resolv.conf
// has changed: a VPN or another network changes it. Nothing polls: the file is
// looked at when there is a query.
type hostServers struct {
	path string // for tests; /etc/resolv.conf by default

	mu      sync.Mutex
	changed time.Time
	size    int64
	servers []netip.AddrPort
}

func (h *hostServers) get() []netip.AddrPort {
	path := h.path
	if path == "" {
		path = "/etc/resolv.conf"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil {
		// As the C library has it.
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	if h.servers != nil && st.ModTime().Equal(h.changed) && st.Size() == h.size {
		return h.servers
	}
	servers := []netip.AddrPort{}
	if conf, err := dns.ClientConfigFromFile(path); err == nil {
		for _, s := range conf.Servers {
			if a, err := netip.ParseAddr(s); err == nil {
				servers = append(servers, netip.AddrPortFrom(a, 53))
			}
		}
	}
	if len(servers) == 0 {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	h.changed, h.size, h.servers = st.ModTime(), st.Size(), servers
	return servers
}
