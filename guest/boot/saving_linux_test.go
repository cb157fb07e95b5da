package boot

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

func TestUsesFolder(t *testing.T) {
	const own = "22 1 0:19 / /run/berth/share/host0 rw,nosuid,nodev - 9p host0 rw,trans=fd\n"
	for name, test := range map[string]struct {
		mounts string
		used   bool
	}{
		"nothing":          {"", false},
		"PID 1's":          {"21 1 0:2 / / rw - erofs /dev/vda ro\n" + own, false},
		"a container's":    {own + "40 39 0:19 /src /src rw,nosuid,nodev master:3 - 9p host0 rw,trans=fd\n", true},
		"of another kind":  {"40 39 0:19 /src /src rw - virtiofs host0 rw\n", false},
		"cut short":        {"40 39 0:19 /src - 9p host0\n", false},
		"no separator":     {"40 39 0:19 /src /src rw 9p host0\n", false},
		"in a sub-folder":  {"40 39 0:19 / /run/berth/share/host0/x rw - 9p host0 rw\n", true},
		"named like it is": {"40 39 0:19 / /mnt rw - ext4 9p rw\n", false},
	} {
		if used := usesFolder(strings.NewReader(test.mounts)); used != test.used {
			t.Errorf("%s: used is %t", name, used)
		}
	}
}

// ends are the two ends of a stream.
func ends(t *testing.T) (guest, host *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest, host = os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "host")
	t.Cleanup(func() { guest.Close(); host.Close() })
	return guest, host
}

// TestAnotherHost has a host take over a boot whose secret it knows, and none that
// has another.
func TestAnotherHost(t *testing.T) {
	mine := bytes.Repeat([]byte{7}, wire.SecretSize)
	h := newHost(newPhases())
	h.welcome = wire.Welcome{Protocol: wire.Protocol, Secret: mine, Hostname: "berth"}
	first, firstHost := ends(t)
	h.begin(first)
	orders := h.orders

	answer := func(secret []byte) error {
		guest, host := ends(t)
		go func() {
			var hello wire.Hello
			if err := wire.ReadFrame(host, &hello); err != nil || !bytes.Equal(hello.Secret, mine) {
				t.Errorf("hello %+v, %v", hello, err)
			}
			wire.WriteFrame(host, wire.Welcome{Protocol: wire.Protocol, Secret: secret, Hostname: "other", Time: time.Unix(5, 0)})
		}()
		return h.greet(guest, "1")
	}
	if err := answer(bytes.Repeat([]byte{8}, wire.SecretSize)); err == nil {
		t.Error("a host without the secret is let in")
	}
	if err := answer(mine); err != nil {
		t.Fatal(err)
	}
	if h.welcome.Hostname != "berth" || !h.welcome.Time.Equal(time.Unix(5, 0)) {
		t.Errorf("the guest goes on with %+v", h.welcome)
	}

	second, secondHost := ends(t)
	firstHost.Close()
	if _, ok := <-orders; ok {
		t.Error("an order of a host that is gone")
	}
	h.begin(second)
	h.reply(3, nil)
	var note wire.Note
	if err := wire.ReadFrame(secondHost, &note); err != nil || note.Reply == nil || note.Reply.ID != 3 {
		t.Errorf("note %+v, %v", note, err)
	}
	h.flush(10 * time.Second)
}
