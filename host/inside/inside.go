// Package inside asks the guest what goes on in it, for the daemon's control API:
// which containers run, and what they use. It asks only while somebody wants to
// know, and believes no answer beyond its limits: the guest may be hostile.
package inside

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
)

const (
	// maxAnswer bounds an answer, in bytes, and maxContainers what is made of it.
	maxAnswer     = 8 << 20
	maxContainers = 500
	// askTimeout bounds one question; an emulated guest is slow.
	askTimeout = 15 * time.Second
	// settle is how long changes are collected before the containers are listed anew.
	settle = 50 * time.Millisecond
)

// Guest is a machine's guest. It is safe for concurrent use and holds no
// connection between calls.
type Guest struct {
	// Dial connects to a port of the guest's, see guest/wire.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
}

// Containers lists those that run, by name.
func (g Guest) Containers(ctx context.Context) ([]api.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := g.do(ctx, wire.PortDocker, "GET", "/containers/json")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return decodeContainers(io.LimitReader(resp.Body, maxAnswer))
}

// decodeContainers reads docker's list of containers.
func decodeContainers(r io.Reader) ([]api.Container, error) {
	var found []struct {
		ID    string
		Names []string
		Image string
		State string
		Ports []struct {
			PrivatePort, PublicPort uint16
			Type                    string
		}
	}
	if err := json.NewDecoder(r).Decode(&found); err != nil {
		return nil, fmt.Errorf("cannot understand the guest: %w", err)
	}
	list := []api.Container{}
	for _, f := range found[:min(len(found), maxContainers)] {
		c := api.Container{ID: f.ID, Image: f.Image, State: f.State}
		if len(f.Names) > 0 {
			c.Name = strings.TrimPrefix(f.Names[0], "/")
		}
		for _, p := range f.Ports {
			port := api.Port{Host: p.PublicPort, Container: p.PrivatePort, Protocol: p.Type}
			// One port has an entry for each of the host's addresses.
			if p.PublicPort != 0 && !slices.Contains(c.Ports, port) {
				c.Ports = append(c.Ports, port)
			}
		}
		slices.SortFunc(c.Ports, func(a, b api.Port) int {
			return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Protocol, b.Protocol))
		})
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b api.Container) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// changes are the events after which another list of containers is true.
const changes = `{"type":["container"],"event":["start","die","pause","unpause","rename","destroy"]}`

// Follow calls each with the containers that run now, and again whenever that
// changes. It returns when ctx ends or the engine does, always with an error.
func (g Guest) Follow(ctx context.Context, each func([]api.Container)) error {
	resp, err := g.do(ctx, wire.PortDocker, "GET", "/events?filters="+url.QueryEscape(changes))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		// What an event says does not matter: any byte is news.
		for r, b := bufio.NewReader(resp.Body), make([]byte, 4096); ; {
			if _, err := r.Read(b); err != nil {
				ended <- err
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	for {
		list, err := g.Containers(ctx)
		if err != nil {
			return err
		}
		each(list)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		select {
		case <-changed:
		default:
		}
	}
}

// Stop stops a container, with the patience it was made with.
func (g Guest) Stop(ctx context.Context, id string) error {
	return g.ask(ctx, wire.PortDocker, "POST", "/containers/"+url.PathEscape(id)+"/stop", nil)
}

// Usage is what the guest has used.
func (g Guest) Usage(ctx context.Context) (api.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var u wire.Usage
	if err := g.ask(ctx, wire.PortControl, "GET", "/v1/usage", &u); err != nil {
		return api.Usage{}, err
	}
	return api.Usage{Up: u.Up, Busy: u.Busy, CPUs: u.CPUs, MemoryUsed: max(0, u.MemoryTotal-u.MemoryAvailable), MemoryTotal: u.MemoryTotal}, nil
}

// ask decodes the answer into a value, if there is one.
func (g Guest) ask(ctx context.Context, port uint32, method, path string, into any) error {
	resp, err := g.do(ctx, port, method, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("cannot understand the guest: %w", err)
	}
	return nil
}

// do returns answers that are no errors; the caller closes the body, and with it
// the connection.
func (g Guest) do(ctx context.Context, port uint32, method, path string) (*http.Response, error) {
	transport := &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return g.Dial(ctx, port) },
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("the guest does not answer: %w", err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e struct{ Message string }
	if json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&e) != nil || e.Message == "" {
		return nil, errors.New("the guest answered " + resp.Status)
	}
	return nil, errors.New(e.Message)
}
