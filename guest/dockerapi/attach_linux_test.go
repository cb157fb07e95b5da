package dockerapi_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/net/websocket"
)

// dialWS attaches to a container over a websocket.
func dialWS(t *testing.T, socket, id, query string) (*websocket.Conn, error) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws://docker/v1.56/containers/"+id+"/attach/ws?"+query, "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = ws.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { ws.Close() })
	return ws, nil
}

// TestAttachWebsocket: input and output go over a websocket, whose end is that of
// the container.
func TestAttachWebsocket(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty=%v", tty), func(t *testing.T) {
			c, socket, _ := server(t)
			id := create(t, c, "", nil, tty, "lines")
			ws, err := dialWS(t, socket, id, "stream=1&stdin=1&stdout=1")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(ws, "hello\n")
			var got strings.Builder
			for buf := make([]byte, 100); !strings.Contains(got.String(), ">hello"); {
				n, err := ws.Read(buf)
				if got.Write(buf[:n]); err != nil {
					t.Fatalf("%q, %v", got.String(), err)
				}
			}
			if !tty && got.String() != ">hello\n" {
				t.Errorf("printed %q", got.String())
			}
			if _, err := c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(ws); err != nil || strings.TrimSpace(string(rest)) != "" {
				t.Errorf("after the end: %q, %v", rest, err)
			}
		})
	}
}

// TestAttachBody: what a client says in the body of its request is no input, but what
// it sends with it, after it, is.
func TestAttachBody(t *testing.T) {
	for name, body := range map[string]string{
		"none": "\r\n", "parameters": "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n" + `{"stream":true}`,
		"empty": "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, socket, _ := server(t)
			id := create(t, c, "", nil, true, "lines")
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, "POST /containers/"+id+"/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"+body+"typed\n")
			if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for buf := make([]byte, 1000); !strings.Contains(got.String(), "typed\r\n>"); {
				n, err := conn.Read(buf)
				if got.Write(buf[:n]); err != nil {
					t.Fatalf("%q, %v", got.String(), err)
				}
			}
			if _, out, _ := strings.Cut(got.String(), "\r\n\r\n"); !strings.HasPrefix(out, "typed\r\n>") {
				t.Errorf("printed %q", out)
			}
			if _, err := c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}

// TestAttachWebsocketFails: what cannot be attached to is an HTTP error, a bad
// handshake too, and who goes away holds nothing.
func TestAttachWebsocketFails(t *testing.T) {
	c, socket, _ := server(t)
	if _, err := dialWS(t, socket, "nobody", "stream=1"); err == nil {
		t.Error("attached to a container that is not there")
	}
	id := create(t, c, "", nil, false, "sleep")
	if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/containers/nobody/attach/ws":                         404,
		"/containers/" + id + "/attach/ws?detachKeys=ctrl-???": 400,
		"/containers/" + id + "/attach/ws?stream=1":            400, // no handshake
	} {
		if code, body := raw(t, socket, "GET "+path+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	before := runtime.NumGoroutine()
	for _, stdin := range []string{"0", "1"} {
		ws, err := dialWS(t, socket, id, "stream=1&stdout=1&stdin="+stdin)
		if err != nil {
			t.Fatal(err)
		}
		ws.Close()
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
