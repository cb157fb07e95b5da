package build

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// uploadHost is the host in the URLs of contexts that came with a request. Nothing
// outside this process can be reached by it, and nothing but the solve that the
// request asked for knows the rest.
const uploadHost = "berth-upload.invalid"

// uploads are the contexts that came with requests and are on their way to
// BuildKit, each for one reading.
type uploads struct {
	mu   sync.Mutex
	byID map[string]io.Reader
}

func newUploads() *uploads { return &uploads{byID: map[string]io.Reader{}} }

// add makes r readable under a URL until done is called.
func (u *uploads) add(r io.Reader) (url string, done func()) {
	id := rand.Text()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byID[id] = r
	return "http://" + uploadHost + "/" + id, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.byID, id)
	}
}

// transport adds the uploads to what next reaches.
func (u *uploads) transport(next http.RoundTripper) http.RoundTripper {
	return &uploadTransport{u, next}
}

type uploadTransport struct {
	uploads *uploads
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *uploadTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != uploadHost {
		return t.next.RoundTrip(req)
	}
	if req.Method != http.MethodGet {
		return answer(req, http.StatusMethodNotAllowed, http.NoBody), nil
	}
	id := req.URL.Path[min(1, len(req.URL.Path)):]
	t.uploads.mu.Lock()
	body, ok := t.uploads.byID[id]
	delete(t.uploads.byID, id)
	t.uploads.mu.Unlock()
	if !ok {
		return answer(req, http.StatusNotFound, http.NoBody), nil
	}
	return answer(req, http.StatusOK, io.NopCloser(body)), nil
}

func answer(req *http.Request, code int, body io.ReadCloser) *http.Response {
	return &http.Response{
		Request: req, StatusCode: code, Status: fmt.Sprintf("%d %s", code, http.StatusText(code)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: body, ContentLength: -1,
	}
}
