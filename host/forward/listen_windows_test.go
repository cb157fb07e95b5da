package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// shortDir is where the tests' addresses are: among the pipes.
func shortDir(t *testing.T) string {
	return `\\.\pipe\berth-test-` + strings.ReplaceAll(filepath.Base(t.TempDir()), "\\", "") + fmt.Sprint(time.Now().UnixNano())
}

func TestDescriptor(t *testing.T) {
	if got := descriptor("S-1-5-21-1"); got != "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;S-1-5-21-1)" {
		t.Error(got)
	}
}

// TestPipe has on a pipe what docker's clients do there: requests, a connection that
// is taken over, and its two directions ended one by one. That a name is taken is
// not in it: Wine 8 lets everybody listen at a pipe.
func TestPipe(t *testing.T) {
	name := shortDir(t)
	l, err := Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprint(w, "answer to ", r.URL.Path)
			return
		}
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		all, err := io.ReadAll(c) // until the client has ended its direction
		if err != nil {
			t.Error(err)
		}
		c.Write(bytes.ToUpper(all))
		c.(interface{ CloseWrite() error }).CloseWrite()
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	// Wine 8 hangs on the very first connection to a pipe with one instance: this one.
	held, err := winio.DialPipe(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	admitsItsUser(t, held)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, name) }}}
	for n := range 20 {
		r, err := client.Get(fmt.Sprintf("http://pipe/%d", n))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if want := fmt.Sprintf("answer to /%d", n); err != nil || string(body) != want {
			t.Fatalf("%q, %v, want %q", body, err, want)
		}
	}
	client.CloseIdleConnections()
	takeOver(t, name)
	held.Close()
	server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve = %v", err)
	}
}

// admitsItsUser reads from a pipe whom the system lets in, besides itself and
// administrators.
func admitsItsUser(t *testing.T, c net.Conn) {
	t.Helper()
	handle := windows.Handle(c.(interface{ Fd() uintptr }).Fd())
	sd, err := windows.GetSecurityInfo(handle, windows.SE_KERNEL_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	var admitted []string
	for _, entry := range regexp.MustCompile(`\(([^;]*);[^)]*;([^;)]*)\)`).FindAllStringSubmatch(sd.String(), -1) {
		admitted = append(admitted, entry[1]+" "+entry[2])
	}
	if want := []string{"A SY", "A BA", "A " + self.User.Sid.String()}; !slices.Equal(admitted, want) {
		t.Errorf("the pipe's rights are %s, so it admits %q, want %q", sd, admitted, want)
	}
}

func takeOver(t *testing.T, name string) {
	t.Helper()
	c, err := Dial(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(c, "POST /attach HTTP/1.1\r\nHost: pipe\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	r := bufio.NewReader(c)
	response, err := http.ReadResponse(r, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", response, err)
	}
	sent := bytes.Repeat([]byte("input "), 50000)
	go func() {
		c.Write(sent)
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, bytes.ToUpper(sent)) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}
