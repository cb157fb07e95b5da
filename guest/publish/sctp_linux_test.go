package publish

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHoldSCTP needs a kernel with SCTP, as the guest's is.
func TestHoldSCTP(t *testing.T) {
	at, held, err := HoldSCTP("sctp", "[::]:0")
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skip("the kernel has no SCTP")
	}
	if err != nil || at.Port() == 0 {
		t.Fatalf("%v, %v", at, err)
	}
	for _, other := range []string{"0.0.0.0", "127.0.0.1", "192.0.2.1"} {
		if _, _, err := HoldSCTP("sctp", netip.AddrPortFrom(netip.MustParseAddr(other), at.Port()).String()); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
			t.Errorf("the same port at %s: %v", other, err)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	_, six, err := HoldSCTP("sctp6", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	_, four, err := HoldSCTP("sctp", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), at.Port()).String())
	if err != nil {
		t.Fatalf("IPv4 beside IPv6 only: %v", err)
	}
	four.Close()
	if _, _, err := HoldSCTP("sctp", "example.org:1"); err == nil {
		t.Error("a name is no address")
	}
}
