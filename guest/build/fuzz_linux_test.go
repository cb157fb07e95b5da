package build

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// hijackable is a response on a connection of its own.
type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

// Hijack implements http.Hijacker.
func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// FuzzSession: a client's session, whatever its headers and what it sends afterwards,
// ends with the client and leaves the next client's alone.
func FuzzSession(f *testing.F) {
	f.Add("id", "h2c", "/moby.filesync.v1.FileSync/DiffCopy", "key", "1", "5s", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	f.Add("", "", "", "%zz", "true", "-1", []byte(nil))
	f.Add("a:b", "h2c", "x", "%41", "1", "1ns", []byte("\xff\xff\xff\x04\x00\x00\x00\x00\x00"))
	sessions, err := session.NewManager()
	if err != nil {
		f.Fatal(err)
	}
	b := &Builder{open: &opened{sessions: sessions}}
	f.Fuzz(func(t *testing.T, id, upgrade, method, key, encoded, interval string, sent []byte) {
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			client, server := net.Pipe()
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/session", http.NoBody)
			for name, value := range map[string]string{
				"Upgrade": upgrade, "X-Docker-Expose-Session-Uuid": id, "X-Docker-Expose-Session-Grpc-Method": method,
				"X-Docker-Expose-Session-Sharedkey": key, "X-Docker-Expose-Session-Sharedkey-Encoded": encoded,
				"X-Docker-Expose-Session-Healthcheck-Interval": interval, "X-Docker-Expose-Session-Healthcheck-Timeout": interval,
			} {
				r.Header.Set(name, value)
			}
			go func() {
				go func() { _, _ = io.Copy(io.Discard, client) }()
				_ = client.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = client.Write(sent)
				client.Close()
				cancel()
			}()
			ended := make(chan error, 1)
			go func() { ended <- b.Session(ctx, hijackable{httptest.NewRecorder(), server}, r) }()
			select {
			case err := <-ended:
				if err != nil && (upgrade == "h2c" || strings.Contains(err.Error(), "already exists")) {
					t.Errorf("the session is refused: %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the session does not end with its client")
			}
			cancel()
			server.Close()
		}
	})
}

// FuzzHosts: what a client adds to the hosts of a build is refused, or is one name and
// one address for each.
func FuzzHosts(f *testing.F) {
	for _, seed := range []string{"h:192.0.2.9", "g=host-gateway", "six:[2001:db8::1]", "a=b:c", ":", "=", "a:b,c=d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		out, err := extraHosts([]string{host}, netip.MustParseAddr("192.0.2.1"))
		if err != nil {
			return
		}
		if name, _, ok := strings.Cut(out[0], "="); len(out) != 1 || !ok || name == "" || strings.ContainsAny(out[0], ",\n\r\"") {
			t.Errorf("%q became %q", host, out)
		}
	})
}

// FuzzHead: no frontend's definition breaks the builder.
func FuzzHead(f *testing.F) {
	op, err := proto.Marshal(&pb.Op{Inputs: []*pb.Input{{Digest: "sha256:0"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(op)
	f.Add([]byte{0x0a, 0x00})
	f.Fuzz(func(t *testing.T, last []byte) {
		if got := head(&pb.Definition{Def: [][]byte{nil, last}}); got != "" && !strings.Contains(string(last), string(got)) {
			t.Errorf("%q has the step %q", last, got)
		}
	})
}

// FuzzNames: a name for an image is refused or is whole, and names stay apart.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"", "*", "a", "a,localhost:5000/b/c:1", "A", "a,", "a@sha256:" + strings.Repeat("0", 64)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		names, err := normalNames(list)
		if err != nil {
			return
		}
		if again, err := normalNames(names); err != nil || again != names || strings.Count(names, ",") != strings.Count(list, ",") {
			t.Errorf("%q became %q, and that %q, %v", list, names, again, err)
		}
		_ = published(list)
	})
}
