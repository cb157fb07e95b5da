package dockerapi_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func response(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// TestBodyThatNeverEnds: a body that stops coming is given up, and costs no
// goroutine for ever. The time a server waits is too long for a test: the client
// goes away instead.
func TestBodyThatNeverEnds(t *testing.T) {
	_, socket, w := server(t)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
	for range 100 {
		io.WriteString(conn, "10\r\n{\"Image\":\"img\", \r\n")
	}
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _ := conn.Read(make([]byte, 1)); n > 0 {
		// refused early: as good
		t.Log("the body was refused before its end")
	}
	conn.Close()
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestEndlessBody sends more than any request may have, without end.
func TestEndlessBody(t *testing.T) {
	_, socket, _ := server(t)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n")
	chunk := "10000\r\n" + strings.Repeat("x", 0x10000) + "\r\n"
	refused := false
	for range 1000 { // 64 MiB
		if _, err := io.WriteString(conn, chunk); err != nil {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("64 MiB of a name were taken")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1.44/containers/json?all=1", "")
	f.Add("POST", "/containers/create?name=x", `{"Image":"img","HostConfig":{"Binds":["a:/b:ro"]}}`)
	f.Add("GET", "/images/a/b/c/json", "")
	f.Add("DELETE", "/v1.40/images/x%2Fy?force=1", "")
	f.Add("GET", `/events?since=1&until=2&filters={"type":{"container":true}}`, "")
	f.Add("POST", "/volumes/create", `{"Name":"abc","DriverOpts":{"o":"x"}}`)
	f.Add("PUT", "/containers/x/archive?path=/", "")
	h, _ := handler(f)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "http://d"+path, strings.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == 500 && ctx.Err() == nil {
			t.Errorf("%s %s %s: %s", method, path, body, w.Body)
		}
	})
}
