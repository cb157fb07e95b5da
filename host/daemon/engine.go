package daemon

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

const (
	// pingTimeout bounds one question; an emulated guest is slow.
	pingTimeout = 15 * time.Second
	// The pauses between questions, once PID 1 has said that the engine runs:
	// it takes a moment from there to its socket.
	pingFirst, pingLast = 10 * time.Millisecond, 250 * time.Millisecond
)

// note takes what PID 1 reports.
func (d *daemon) note(s *session, n wire.Note) {
	if n.Phase != nil {
		d.progress.guest(*n.Phase)
		if n.Phase.Error != "" {
			d.log.Error("a phase of the guest's boot failed", "phase", n.Phase.Name, "error", n.Phase.Error)
		}
	}
	if n.Engine != nil {
		d.progress.update(func(st *api.Status) { st.Engine = engineOf(*n.Engine) })
		if n.Engine.Restarts > 0 {
			d.log.Warn("the engine was restarted", "restarts", n.Engine.Restarts, "reason", n.Engine.Reason)
		}
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// awaitEngine reports once that the engine of the boot answers. It asks when PID
// 1 has news, and from the engine's start on in short intervals.
func (d *daemon) awaitEngine(ctx context.Context, s *session, m vm.Machine) {
	pause := time.NewTimer(pingTimeout)
	defer pause.Stop()
	var end func(error)
	for wait := pingFirst; ; wait = min(2*wait, pingLast) {
		select {
		case <-s.done:
			return
		case <-ctx.Done():
			return
		case <-s.news:
		case <-pause.C:
		}
		if e := d.progress.get().Engine; e == nil || !e.Running {
			continue
		}
		if end == nil {
			end = d.progress.begin("docker")
		}
		err := ping(ctx, m)
		if err == nil {
			end(nil)
			d.send(d.ready, s)
			return
		}
		d.log.Debug("the engine does not answer yet", "error", err)
		pause.Reset(wait)
	}
}

// ping asks the engine for a sign of life.
func ping(ctx context.Context, m vm.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	conn, err := m.Dial(ctx, wire.PortDocker)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write([]byte("GET /_ping HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n")); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the engine answered %s", resp.Status)
	}
	return nil
}

// guestProxy chooses the proxies and makes those on the host's loopback
// reachable from the guest.
func guestProxy(configured, ofHost machine.Proxy, loopback string) wire.Proxy {
	p := configured
	if p == (machine.Proxy{}) {
		p = ofHost
	}
	return wire.Proxy{HTTP: viaLoopback(p.HTTP, loopback), HTTPS: viaLoopback(p.HTTPS, loopback), No: p.No}
}

func viaLoopback(proxy, loopback string) string {
	u, err := url.Parse(proxy)
	if err != nil || loopback == "" {
		return proxy
	}
	switch u.Hostname() {
	case "localhost", "127.0.0.1", "::1":
		port := u.Port()
		u.Host = loopback
		if port != "" {
			u.Host += ":" + port
		}
		return u.String()
	}
	return proxy
}
