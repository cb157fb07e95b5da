package usernet

import (
	"errors"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// serversLife is how long the list is used: Windows has no file to look at, and
// asking takes a millisecond.
const serversLife = 3 * time.Second

// hostServers are the DNS servers of the host's adapters that are up, in the
// system's order.
type hostServers struct {
	mu      sync.Mutex
	read    time.Time
	servers []netip.AddrPort
}

func (h *hostServers) get() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.read) < serversLife {
		return h.servers
	}
	if servers, err := adapterServers(); err == nil {
		h.read, h.servers = time.Now(), servers
	}
	return h.servers
}

func adapterServers() ([]netip.AddrPort, error) {
	const flags = windows.GAA_FLAG_SKIP_UNICAST | windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST | windows.GAA_FLAG_SKIP_FRIENDLY_NAME
	size := uint32(16 << 10)
	var buf []byte
	for {
		buf = make([]byte, size)
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, flags, 0, (*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0])), &size)
		if err == nil {
			break
		}
		if !errors.Is(err, windows.ERROR_BUFFER_OVERFLOW) || size > 1<<20 {
			return nil, err
		}
	}
	seen := map[netip.Addr]bool{}
	var out []netip.AddrPort
	for a := (*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0])); a != nil; a = a.Next {
		if a.OperStatus != windows.IfOperStatusUp {
			continue
		}
		for d := a.FirstDnsServerAddress; d != nil; d = d.Next {
			ip, ok := netip.AddrFromSlice(d.Address.IP())
			// fec0::/10 are Windows' made-up servers, which never answer.
			if ip = ip.Unmap(); !ok || seen[ip] || (ip.Is6() && ip.As16()[0] == 0xfe && ip.As16()[1]&0xc0 == 0xc0) {
				continue
			}
			seen[ip] = true
			out = append(out, netip.AddrPortFrom(ip, 53))
		}
	}
	return out, nil
}
