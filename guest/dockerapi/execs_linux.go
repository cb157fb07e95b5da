package dockerapi

import (
	"context"
	"fmt"
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/stdio"
)

func (s *Server) execs() {
	s.handle("POST", "/containers/{id...}/exec", s.execCreate)
	s.handle("POST", "/exec/{id...}/start", s.execStart)
	s.handle("GET", "/exec/{id...}/json", s.execInspect)
	s.handle("POST", "/exec/{id...}/resize", func(c *call) error {
		h, w, err := c.size()
		if err != nil {
			return err
		}
		if err := s.cfg.Engine.ExecResize(c.Context(), c.vars["id"], h, w); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	})
}

func (s *Server) execCreate(c *call) error {
	var req apicontainer.ExecCreateRequest
	if err := c.read(&req, false); err != nil {
		return err
	}
	if _, err := detachKeys(req.DetachKeys); err != nil {
		return err
	}
	id, err := s.cfg.Engine.ExecCreate(c.Context(), c.vars["id"], req)
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apicontainer.ExecCreateResponse{ID: id})
}

func (s *Server) execStart(c *call) error {
	var req apicontainer.ExecStartRequest
	if err := c.read(&req, true); err != nil {
		return err
	}
	id := c.vars["id"]
	state, err := s.cfg.Engine.ExecInspect(c.Context(), id)
	if err != nil {
		return err
	}
	if req.Detach {
		if err := s.cfg.Engine.ExecStart(c.Context(), id, req.ConsoleSize, engine.Attached{}); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	}
	keys, err := detachKeys(state.Config.DetachKeys)
	if err != nil {
		return err
	}
	a := engine.Attached{DetachKeys: keys}
	// How output comes is for the client to say here, whatever the exec has.
	take := func(_ bool, gone func()) (peer, bool, error) {
		conn, err := c.hijack(req.Tty, gone)
		return conn, !req.Tty, err
	}
	return s.attached(c, &a, state.Config.AttachStdin, take, func(ctx context.Context) error {
		begin := a.Begin
		var out func(stdio.Stream, []byte) error
		a.Begin = func(tty bool) (func(stdio.Stream, []byte) error, error) {
			var err error
			out, err = begin(tty)
			return out, err
		}
		err := s.cfg.Engine.ExecStart(ctx, id, req.ConsoleSize, a)
		if err != nil && out != nil {
			// The status is sent: all that is left is the stream.
			_ = out(stdio.Stdout, fmt.Appendf(nil, "%v\r\n", err))
		}
		return err
	})
}

func (s *Server) execInspect(c *call) error {
	st, err := s.cfg.Engine.ExecInspect(c.Context(), c.vars["id"])
	if err != nil {
		return err
	}
	keys, _ := detachKeys(st.Config.DetachKeys) // checked when it was made
	if keys == nil {
		keys = []byte{}
	}
	r := apicontainer.ExecInspectResponse{ID: st.ID, Running: st.Running, ExitCode: st.ExitCode, ContainerID: st.Container,
		OpenStdin: st.Config.AttachStdin, OpenStdout: st.Config.AttachStdout, OpenStderr: st.Config.AttachStderr, Pid: st.PID,
		CanRemove: st.ExitCode != nil, DetachKeys: keys,
		ProcessConfig: &apicontainer.ExecProcessConfig{Tty: st.Config.Tty, Entrypoint: st.Config.Cmd[0], Arguments: st.Config.Cmd[1:],
			Privileged: &st.Config.Privileged, User: st.Config.User}}
	return c.reply(http.StatusOK, r)
}
