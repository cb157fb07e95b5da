package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// ErrUnreachable is wrapped by errors that mean: no daemon listens there.
var ErrUnreachable = errors.New("the machine's daemon does not answer")

// ErrEnded is returned when the daemon went away in the middle of an answer.
var ErrEnded = errors.New("the machine's daemon ended")

// Client talks to one daemon. It is safe for concurrent use and holds no
// connection between calls.
type Client struct {
	http http.Client
}

// NewClient talks to the daemon that listens on the address, which is a
// machine's APIAddress. It connects at each call.
func NewClient(address string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, address) }
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Dial connects to one of a machine's addresses: a unix socket, or a named pipe.
func Dial(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, address) }

// Status asks for the machine's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "GET", "/v1/status", nil, &s)
}

// Follow calls each with the phases of the start there was and will be, and
// returns the status it ended in.
func (c *Client) Follow(ctx context.Context, each func(Phase)) (Status, error) {
	var end *Status
	err := stream(ctx, c, "/v1/progress", func(e Event) bool {
		end = e.End
		if e.Phase != nil {
			each(*e.Phase)
		}
		return end == nil
	})
	if end != nil {
		return *end, nil
	}
	return Status{}, err
}

// Watch calls each with the machine as it is now and after each change. It
// returns the error of ctx, or ErrEnded when the daemon has ended.
func (c *Client) Watch(ctx context.Context, each func(Snapshot)) error {
	return stream(ctx, c, "/v1/watch", func(s Snapshot) bool {
		each(s)
		return true
	})
}

// stream calls each with every line of an answer until it returns false. An
// answer that ends before is an error.
func stream[T any](ctx context.Context, c *Client, path string, each func(T) bool) error {
	resp, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var v T
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return fmt.Errorf("cannot understand the machine's daemon: %w: is it another version? Run \"berth restart\"", err)
		}
		if !each(v) {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ErrEnded
}

// Usage asks what the guest has used.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	return u, c.call(ctx, "GET", "/v1/usage", nil, &u)
}

// StopContainer stops a container of the machine.
func (c *Client) StopContainer(ctx context.Context, id string) error {
	return c.call(ctx, "POST", "/v1/containers/"+url.PathEscape(id)+"/stop", nil, nil)
}

// Cancel gives up the start, unless somebody else follows it too.
func (c *Client) Cancel(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/cancel", nil, nil)
}

// Pause freezes the machine, until Resume or until somebody connects to it.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/pause", nil, nil)
}

// Resume sets the machine going again.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/resume", nil, nil)
}

// Stop switches the machine off, politely for at most timeout.
func (c *Client) Stop(ctx context.Context, timeout time.Duration) (Status, error) {
	var s Status
	return s, c.call(ctx, "POST", "/v1/stop", url.Values{"timeout": {timeout.String()}}, &s)
}

// Save saves the machine's state and switches it off.
func (c *Client) Save(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "POST", "/v1/save", nil, &s)
}

// Logs copies a log to w.
func (c *Client) Logs(ctx context.Context, q LogQuery, w io.Writer) error {
	resp, err := c.do(ctx, "GET", "/v1/logs", url.Values{
		"source": {q.Source}, "tail": {strconv.Itoa(q.Tail)}, "follow": {strconv.FormatBool(q.Follow)},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	if errors.Is(err, io.ErrUnexpectedEOF) { // the daemon ended, and with it the log
		return nil
	}
	return err
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, into any) error {
	resp, err := c.do(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return ErrEnded
		}
		return fmt.Errorf("cannot understand the machine's daemon: %w", err)
	}
	return nil
}

// do returns answers that are no errors; the caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, translate(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e apiError
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&e); err != nil || e.Message == "" {
		e.Message = "the machine's daemon answered " + resp.Status
	}
	return nil, errors.New(e.Message)
}

func translate(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || isAbsent(err) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: %w", ErrEnded, err)
}
