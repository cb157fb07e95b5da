package build

import (
	"archive/tar"
	"bufio"
	"bytes"
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
	r = &plainFirst{rest: bufio.NewReaderSize(r, tarBlock)}
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

const tarBlock = 512 // bytes

// plainFirst is an upload in which a tar begins with an entry that stands in its
// first block. BuildKit looks at 1 KiB of a context to tell a tar from a
// Dockerfile, which is not enough for an entry that extended headers precede, as
// Python writes them.
type plainFirst struct {
	rest  *bufio.Reader
	begun bool
	root  []byte // what is left of the entry that was put first
}

func (p *plainFirst) Read(b []byte) (int, error) {
	if !p.begun {
		p.begun = true
		if head, _ := p.rest.Peek(tarBlock); extended(head) {
			var buf bytes.Buffer
			h := &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, Format: tar.FormatUSTAR}
			if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
				return 0, err
			}
			p.root = buf.Bytes()
		}
	}
	if len(p.root) > 0 {
		n := copy(b, p.root)
		p.root = p.root[n:]
		return n, nil
	}
	return p.rest.Read(b)
}

// extended says whether a tar begins with a header that is of another entry.
func extended(head []byte) bool {
	if len(head) < tarBlock || string(head[257:262]) != "ustar" {
		return false
	}
	switch head[156] {
	case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		return true
	}
	return false
}
