package dockerapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/berthvm/berth/guest/engine/filter"
)

// maxBody bounds a request's JSON, in bytes.
const maxBody = 4 << 20

// encode returns a line of JSON in which characters are themselves, also those that
// mean something in HTML.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// reply answers with JSON.
func (c *call) reply(code int, v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(code)
	_, err = c.w.Write(body)
	if err != nil {
		return errBegun
	}
	return nil
}

// done answers with a status code only.
func (c *call) done(code int) error {
	c.w.WriteHeader(code)
	return nil
}

// read decodes the request's JSON. The body is bounded in size and time. An
// absent one is an error unless optional.
func (c *call) read(v any, optional bool) error {
	kind := c.Header.Get("Content-Type")
	if kind == "" && (c.ContentLength == 0 || c.Body == http.NoBody) {
		if optional {
			return nil
		}
		return invalid("invalid JSON: got EOF while reading request body")
	}
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != "application/json" {
		if optional && c.ContentLength == 0 {
			return nil
		}
		return invalid("unsupported Content-Type header (%s): must be 'application/json'", kind)
	}
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	body := http.MaxBytesReader(c.w, c.Body, maxBody)
	dec := json.NewDecoder(body)
	err := dec.Decode(v)
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF) && optional:
		return nil
	case errors.Is(err, io.EOF):
		return invalid("invalid JSON: got EOF while reading request body")
	case errors.As(err, &large):
		return invalid("request body too large: at most %d bytes are taken", maxBody)
	case err != nil:
		// The rest is taken first: a client that still writes would not read the
		// answer before the connection is closed.
		_, _ = io.Copy(io.Discard, body)
		return invalid("invalid JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalid("unexpected content after JSON")
	}
	return nil
}

func (c *call) query(name string) string { return c.URL.Query().Get(name) }

// flag reads a boolean as docker does: empty, 0, no, false and none are false.
func (c *call) flag(name string) bool { return truth(c.query(name)) }

// flagOr is flag with another value where the parameter is absent.
func (c *call) flagOr(name string, absent bool) bool {
	if !c.URL.Query().Has(name) {
		return absent
	}
	return c.flag(name)
}

func truth(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// number reads an integer; absent is zero.
func (c *call) number(name string) (int, error) {
	v := c.query(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, invalid("invalid value for %s: %q is not a number", name, v)
	}
	return n, nil
}

// size reads a terminal's height and width.
func (c *call) size() (height, width uint, err error) {
	for _, p := range []struct {
		name string
		to   *uint
	}{{"h", &height}, {"w", &width}} {
		digits, negative := strings.CutPrefix(c.query(p.name), "-")
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || negative {
			reason := strconv.ErrSyntax
			if err == nil || errors.Is(err, strconv.ErrRange) {
				reason = strconv.ErrRange
			}
			return 0, 0, invalid("invalid resize %s %q: %v", map[string]string{"h": "height", "w": "width"}[p.name], c.query(p.name), reason)
		}
		*p.to = uint(n)
	}
	return height, width, nil
}

func (c *call) filters() (filter.Set, error) { return filter.Parse(c.query("filters")) }

// moment reads a time as docker's since and until write it: as filter.Unix takes it,
// or RFC 3339. Absent and "0" are zero.
func (c *call) moment(name string) (time.Time, error) {
	return parseMoment(name, c.query(name))
}

func parseMoment(name, v string) (time.Time, error) {
	if v == "" || v == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t, nil
	}
	t, err := filter.Unix(v)
	if err != nil {
		return time.Time{}, invalid("invalid value for %q: %v", name, err)
	}
	return t, nil
}
