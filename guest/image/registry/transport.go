package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
)

const (
	maxBackoff    = 5 * time.Second
	maxRetryAfter = 15 * time.Second
	maxErrorBody  = 16 << 10 // bytes of an error's body that are looked at
)

// ErrStalled is the cause of a request that ended because nothing moved.
var ErrStalled = say(errdefs.ErrUnavailable, "registry stopped answering")

// StatusError is an answer that repeating did not cure.
type StatusError struct {
	Code    int
	Message string // of the registry, or empty
}

// Error says what the registry said.
func (e *StatusError) Error() string {
	text := e.Message
	if text == "" {
		text = fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code))
	}
	if e.Code == http.StatusTooManyRequests {
		return "toomanyrequests: " + strings.TrimPrefix(text, "toomanyrequests: ")
	}
	return "received unexpected HTTP status from registry: " + text
}

// Unwrap marks the error as one that may pass.
func (e *StatusError) Unwrap() error { return errdefs.ErrUnavailable }

// transport repeats requests that failed for a passing reason and breaks off
// those in which nothing moves.
type transport struct {
	agent   func(context.Context) string // of requests without a User-Agent
	base    *http.Transport
	stall   time.Duration
	retries int
	backoff time.Duration
}

// RoundTrip implements http.RoundTripper. Only GET and HEAD are repeated.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	repeatable := (req.Method == http.MethodGet || req.Method == http.MethodHead) && req.Body == nil
	for try := 0; ; try++ {
		resp, err := t.once(req)
		pause, retry := t.pause(req, resp, err, try)
		if !retry {
			return resp, err
		}
		var failure error = err
		if resp != nil {
			failure = statusError(resp)
			resp.Body.Close()
		}
		if !repeatable || try >= t.retries {
			return nil, failure
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-req.Context().Done():
			timer.Stop()
			return nil, context.Cause(req.Context())
		}
	}
}

// CloseIdleConnections is what http.Client.CloseIdleConnections looks for.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// pause says whether an outcome may pass, and after how long to look again.
func (t *transport) pause(req *http.Request, resp *http.Response, err error, try int) (time.Duration, bool) {
	pause := min(t.backoff<<min(try, 16), maxBackoff)
	if err != nil {
		return pause, req.Context().Err() == nil && isReset(err)
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
	default:
		return 0, false
	}
	if after := retryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
		pause = min(after, maxRetryAfter)
	}
	return pause, true
}

// retryAfter reads the header's two forms; zero means it says nothing useful.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
		if seconds < 0 || seconds > int(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// isReset tells errors of a connection that broke after it was made.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// statusError reads the registry's own words from an answer.
func statusError(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	return &StatusError{Code: resp.StatusCode, Message: errorMessage(body)}
}

// errorMessage takes the first error's message of a registry's JSON, made safe
// to print; anything else gives an empty string.
func errorMessage(body []byte) string {
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	first := answer.Errors[0]
	text := first.Message
	if text == "" {
		text = first.Code
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "..."
	}
	return text
}

// once does one request under the watch of a stall timer.
func (t *transport) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	watch := &watch{stall: t.stall, cancel: cancel}
	inner := req.WithContext(ctx)
	if req.Header.Get("User-Agent") == "" {
		inner.Header = req.Header.Clone()
		inner.Header.Set("User-Agent", t.agent(ctx))
	}
	if req.Body != nil && req.Body != http.NoBody {
		inner.Body = &upload{ReadCloser: req.Body, watch: watch}
	}
	resp, err := t.base.RoundTrip(inner)
	watch.stop()
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Request = req
	resp.Body = &download{ReadCloser: resp.Body, watch: watch, ctx: ctx}
	return resp, nil
}

// stalled puts ErrStalled in place of the error it caused.
func stalled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
		return cause
	}
	var timeout interface{ Timeout() bool }
	if ctx.Err() == nil && errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%w (%w)", ErrStalled, err)
	}
	return err
}

// watch cancels a request when it runs out; it only runs while the other side is
// waited for.
type watch struct {
	stall  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards timer
	timer *time.Timer
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.stall, func() { w.cancel(ErrStalled) })
		return
	}
	w.timer.Reset(w.stall)
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// download is a response's body; its reads are watched.
type download struct {
	io.ReadCloser
	watch *watch
	ctx   context.Context //nolint:containedctx // the request's, for its cause
}

func (d *download) Read(p []byte) (int, error) {
	d.watch.start()
	n, err := d.ReadCloser.Read(p)
	d.watch.stop()
	if err != nil && err != io.EOF {
		err = stalled(d.ctx, err)
	}
	return n, err
}

func (d *download) Close() error {
	err := d.ReadCloser.Close()
	d.watch.stop()
	d.watch.cancel(nil)
	return err
}

// upload is a request's body; what lies between its reads, the sending, is
// watched.
type upload struct {
	io.ReadCloser
	watch *watch
}

func (u *upload) Read(p []byte) (int, error) {
	u.watch.stop()
	n, err := u.ReadCloser.Read(p)
	if err == nil {
		u.watch.start()
	}
	return n, err
}

func (u *upload) Close() error {
	u.watch.stop()
	return u.ReadCloser.Close()
}
