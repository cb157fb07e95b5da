package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/wire"
)

// ext4 returns the start of a disk with a superblock.
func ext4(change func(sb []byte)) []byte {
	head := make([]byte, 64<<10)
	sb := head[1024:]
	le := binary.LittleEndian
	le.PutUint32(sb[0x4:], 262144)
	le.PutUint32(sb[0x18:], 2)
	le.PutUint16(sb[0x38:], 0xef53)
	le.PutUint16(sb[0x3a:], 1)
	le.PutUint32(sb[0x60:], 0x2c2)
	if change != nil {
		change(sb)
	}
	return head
}

func TestParseSuperblock(t *testing.T) {
	le := binary.LittleEndian
	tests := []struct {
		name  string
		head  []byte
		want  superblock
		dirty bool
		err   string
	}{
		{name: "clean", head: ext4(nil), want: superblock{blocks: 262144, blockSize: 4096, state: 1}},
		{name: "not unmounted", head: ext4(func(sb []byte) { le.PutUint16(sb[0x3a:], 0) }), want: superblock{blocks: 262144, blockSize: 4096}, dirty: true},
		{name: "has errors", head: ext4(func(sb []byte) { le.PutUint16(sb[0x3a:], 3) }), want: superblock{blocks: 262144, blockSize: 4096, state: 3}, dirty: true},
		{name: "journal", head: ext4(func(sb []byte) { le.PutUint32(sb[0x60:], 0x2c6) }), want: superblock{blocks: 262144, blockSize: 4096, state: 1, recover: true}, dirty: true},
		{name: "64 bit", head: ext4(func(sb []byte) { le.PutUint32(sb[0x150:], 1) }), want: superblock{blocks: 1<<32 | 262144, blockSize: 4096, state: 1}},
		{name: "small blocks", head: ext4(func(sb []byte) { le.PutUint32(sb[0x18:], 0) }), want: superblock{blocks: 262144, blockSize: 1024, state: 1}},
		{name: "damaged", head: ext4(func(sb []byte) { le.PutUint32(sb[0x18:], 77) }), err: "damaged"},
		{name: "blank", head: make([]byte, 64<<10), err: errBlank.Error()},
		{name: "one byte at the end", head: append(make([]byte, 64<<10-1), 1), err: "not ext4"},
		{name: "another file system", head: append([]byte("XFSB"), make([]byte, 64<<10)...), err: "not ext4"},
		{name: "short", head: make([]byte, 512), err: "EOF"},
	}
	for _, test := range tests {
		got, err := parseSuperblock(test.head)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.err)
		}
		if got != test.want || got.dirty() != (test.dirty || err != nil) {
			t.Errorf("%s: got %+v, dirty %v", test.name, got, got.dirty())
		}
	}
}

func FuzzParseSuperblock(f *testing.F) {
	f.Add(ext4(nil)[:4096])
	f.Add(make([]byte, 2048))
	f.Fuzz(func(t *testing.T, head []byte) {
		sb, err := parseSuperblock(head)
		if err == nil && (sb.blockSize < 1024 || sb.blockSize > 65536) {
			t.Errorf("block size %d", sb.blockSize)
		}
		if errors.Is(err, errBlank) && len(bytes.Trim(head, "\x00")) > 0 {
			t.Error("a disk that holds something was taken for blank")
		}
	})
}

func TestEtc(t *testing.T) {
	w := wire.Welcome{Hostname: "berth", Network: wire.Network{Gateway: "10.0.0.1", Host: "10.0.0.254"}}
	for _, want := range []string{"127.0.0.1\tlocalhost berth\n", "10.0.0.254\thost.docker.internal", "10.0.0.1\tgateway.docker.internal"} {
		if !strings.Contains(hosts(w), want) {
			t.Errorf("hosts lacks %q:\n%s", want, hosts(w))
		}
	}
	if got := hosts(wire.Welcome{}); strings.Contains(got, "docker") {
		t.Errorf("hosts without a network:\n%s", got)
	}
	if got := resolvConf([]string{"10.0.0.1", "10.0.0.2"}); got != "nameserver 10.0.0.1\nnameserver 10.0.0.2\n" {
		t.Errorf("resolv.conf: %q", got)
	}
}

// TestTuning: only an emulated processor has the engine do without what a real one is
// fast at.
func TestTuning(t *testing.T) {
	for _, c := range []struct {
		acceleration, arch string
		want               bool
	}{{"tcg", "amd64", true}, {"kvm", "amd64", false}, {"tcg", "arm64", false}, {"", "amd64", false}} {
		if got := tuning(c.acceleration, c.arch); len(got) > 0 != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c\011d`); got != "/a b\\c\td" {
		t.Errorf("got %q", got)
	}
}

func TestSetClockRefusesNonsense(t *testing.T) {
	if err := setClock(time.Time{}); err == nil {
		t.Error("the zero time was set")
	}
}

func TestPhasesAreKeptForTheHost(t *testing.T) {
	p := newPhases()
	err := p.run("first", func() error { return errors.New("broken") })
	if err == nil {
		t.Error("the error was lost")
	}
	end := p.begin("second")
	var got []wire.Phase
	p.connect(func(n wire.Note) { got = append(got, *n.Phase) })
	end(nil)
	if len(got) != 4 {
		t.Fatalf("got %+v", got)
	}
	for i, want := range []struct {
		name, err string
		done      bool
	}{{"first", "", false}, {"first", "broken", true}, {"second", "", false}, {"second", "", true}} {
		if got[i].Name != want.name || got[i].Error != want.err || got[i].Done != want.done {
			t.Errorf("note %d: %+v, want %+v", i, got[i], want)
		}
		if got[i].Since <= 0 || got[i].Done && got[i].Took < 0 {
			t.Errorf("note %d: since %v, took %v", i, got[i].Since, got[i].Took)
		}
	}
}

func silent() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestReaperRuns(t *testing.T) {
	r := newReaper(keeper.NewServer(silent()), silent())
	t.Cleanup(func() { signal.Reset(syscall.SIGCHLD) }) // there is one reaper in a process
	var output bytes.Buffer
	status, err := r.run([]string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, &output)
	if err != nil || status.ExitStatus() != 3 || output.String() != "out\nerr\n" {
		t.Errorf("status %d, %v, output %q", status.ExitStatus(), err, &output)
	}
	if _, err := r.run([]string{"/no/such/program"}, &output); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
	// Many that end at once: SIGCHLD coalesces.
	var ends []<-chan syscall.WaitStatus
	for range 50 {
		_, ended, err := r.start([]string{"/bin/true"}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, ended)
	}
	for i, ended := range ends {
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("the end of child %d was missed", i)
		}
	}
	r.waitFor(func() bool { return r.none }, 10*time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.none || len(r.own) != 0 {
		t.Errorf("none %v, own %v", r.none, r.own)
	}
}

func TestCertificates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle")
	if err := writeCertificates(path, ""); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(path); err != nil || target != systemCertificates {
		t.Errorf("link to %q, %v", target, err)
	}
}

// TestHostStream plays the host on a socket pair.
func TestHostStream(t *testing.T) {
	good := wire.Welcome{Protocol: wire.Protocol, Secret: make([]byte, wire.SecretSize), Hostname: "h"}
	tests := []struct {
		name   string
		change func(*wire.Welcome)
		err    string
	}{
		{"good", func(*wire.Welcome) {}, ""},
		{"refused", func(w *wire.Welcome) { w.Error = "not today" }, "not today"},
		{"another protocol", func(w *wire.Welcome) { w.Protocol++ }, "protocol"},
		{"short secret", func(w *wire.Welcome) { w.Secret = w.Secret[1:] }, "secret"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			guest, peer := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "host")
			defer guest.Close()
			defer peer.Close()
			w := good
			test.change(&w)
			go func() {
				var hello wire.Hello
				if err := wire.ReadFrame(peer, &hello); err != nil || hello.Version != "1" || hello.Kernel == "" {
					t.Errorf("hello %+v, %v", hello, err)
				}
				wire.WriteFrame(peer, w)
			}()
			h := newHost(newPhases())
			err = h.greet(guest, "1")
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Fatalf("got %v, want %q", err, test.err)
			}
			if err != nil {
				return
			}
			h.begin(guest)
			h.reply(7, errors.New("no"))
			var note wire.Note
			if err := wire.ReadFrame(peer, &note); err != nil || note.Reply == nil || note.Reply.ID != 7 || note.Reply.Error != "no" {
				t.Errorf("note %+v, %v", note, err)
			}
			h.flush(10 * time.Second)
			if err := wire.WriteFrame(peer, wire.Order{ID: 1, Op: wire.OpTime}); err != nil {
				t.Fatal(err)
			}
			if order := <-h.orders; order.Op != wire.OpTime {
				t.Errorf("order %+v", order)
			}
			peer.Close()
			if order, ok := <-h.orders; ok {
				t.Errorf("order %+v after the end", order)
			}
		})
	}
}
