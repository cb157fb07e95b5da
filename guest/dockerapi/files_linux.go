package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"
)

func (s *Server) files() {
	s.handle("GET", "/containers/{id...}/archive", s.archiveGet)
	s.handle("HEAD", "/containers/{id...}/archive", s.archiveHead)
	s.handle("PUT", "/containers/{id...}/archive", s.archivePut)
	s.handle("GET", "/containers/{id...}/changes", func(c *call) error {
		list, err := s.cfg.Engine.Changes(c.Context(), c.vars["id"])
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, list)
	})
	s.handle("GET", "/containers/{id...}/export", func(c *call) error {
		return s.tarStream(c, "application/octet-stream", func(begin func() io.Writer) error {
			return s.cfg.Engine.Export(c.Context(), c.vars["id"], begin)
		})
	})
}

// path is the parameter that all of archive's methods need.
func (c *call) path() (string, error) {
	if p := c.query("path"); p != "" {
		return p, nil
	}
	return "", invalid("bad parameter: path cannot be empty")
}

// setStat puts a file's description in its header.
func (c *call) setStat(st apicontainer.PathStat) {
	if body, err := json.Marshal(st); err == nil {
		c.w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(body))
	}
}

func (s *Server) archiveHead(c *call) error {
	path, err := c.path()
	if err != nil {
		return err
	}
	st, err := s.cfg.Engine.StatPath(c.Context(), c.vars["id"], path)
	if err != nil {
		return err
	}
	c.setStat(st)
	return c.done(http.StatusOK)
}

func (s *Server) archiveGet(c *call) error {
	path, err := c.path()
	if err != nil {
		return err
	}
	return s.tarStream(c, "application/x-tar", func(begin func() io.Writer) error {
		return s.cfg.Engine.CopyFrom(c.Context(), c.vars["id"], path, func(st apicontainer.PathStat) io.Writer {
			c.setStat(st)
			return begin()
		})
	})
}

// tarStream answers with what f writes. An archive that breaks off must not look
// complete: the connection is cut.
func (s *Server) tarStream(c *call, kind string, f func(begin func() io.Writer) error) error {
	begun := false
	err := f(func() io.Writer {
		begun = true
		c.w.Header().Set("Content-Type", kind)
		c.w.WriteHeader(http.StatusOK)
		return c.w
	})
	if err != nil && begun {
		if c.Context().Err() == nil {
			s.log.Warn("an archive breaks off", "path", c.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return err
}

func (s *Server) archivePut(c *call) error {
	path, err := c.path()
	if err != nil {
		return err
	}
	err = s.cfg.Engine.CopyTo(c.Context(), c.vars["id"], path, c.Body, c.flag("noOverwriteDirNonDir"), c.flag("copyUIDGID"))
	if err != nil {
		return err
	}
	return c.done(http.StatusOK)
}
