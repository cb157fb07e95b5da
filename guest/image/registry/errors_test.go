package registry

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

func TestExplainUnreachable(t *testing.T) {
	ref, err := reference.ParseNormalizedNamed("hello:latest")
	if err != nil {
		t.Fatal(err)
	}
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Name: "registry-1.docker.io", Err: "no such host", IsNotFound: true}}
	got := Explain(fmt.Errorf("failed to do request: %w", &url.Error{Op: "Head", URL: "https://registry-1.docker.io/v2/", Err: dial}), ref, Pull)
	if want := "cannot reach registry docker.io: dial tcp: lookup registry-1.docker.io: no such host"; got.Error() != want || !errdefs.IsUnavailable(got) {
		t.Errorf("got %q, want %q", got, want)
	}
	if read := (&net.OpError{Op: "read", Err: errors.New("reset")}); Explain(read, ref, Pull) != error(read) {
		t.Error("a connection that broke is not one that could not be made")
	}
}
