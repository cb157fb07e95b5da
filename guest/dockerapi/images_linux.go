package dockerapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/common"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/engine/images"
)

func (s *Server) images() {
	s.handle("GET", "/images/json", s.imageList)
	s.handle("POST", "/images/create", s.imageCreate)
	s.handle("POST", "/images/load", s.imageLoad)
	s.handle("GET", "/images/get", s.imageSave)
	s.handle("GET", "/images/search", s.imageSearch)
	s.handle("POST", "/images/prune", s.imagePrune)
	s.handle("GET", "/images/{name...}/json", s.imageInspect)
	s.handle("GET", "/images/{name...}/get", s.imageSave)
	s.handle("GET", "/images/{name...}/history", func(c *call) error {
		platform, err := images.ParsePlatform(c.query("platform"))
		if err != nil {
			return err
		}
		list, err := s.cfg.Images.History(c.Context(), c.vars["name"], platform)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, list)
	})
	s.handle("GET", "/images/{name...}/attestations", s.imageAttestations)
	s.handle("POST", "/images/{name...}/push", s.imagePush)
	s.handle("POST", "/images/{name...}/tag", func(c *call) error {
		ref := c.query("repo")
		if ref == "" {
			return invalid("invalid reference format: the name of a repository is missing")
		}
		if tag := c.query("tag"); tag != "" {
			ref += ":" + tag
		}
		if err := s.cfg.Images.Tag(c.Context(), c.vars["name"], ref); err != nil {
			return err
		}
		return c.done(http.StatusCreated)
	})
	s.handle("DELETE", "/images/{name...}", func(c *call) error {
		if strings.TrimSpace(c.vars["name"]) == "" {
			return invalid("image name cannot be blank")
		}
		platforms, err := c.platforms("platforms", 50)
		if err != nil {
			return err
		}
		list, err := s.cfg.Images.Remove(c.Context(), c.vars["name"], c.flag("force"), platforms)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, list)
	})
	s.handle("GET", "/distribution/{name...}/json", func(c *call) error {
		info, err := s.cfg.Images.Distribution(c.Context(), c.vars["name"], c.auth())
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, info)
	})
	s.handle("POST", "/commit", s.commit)
}

// platforms reads a parameter that may be given several times, from a version of
// the API on. Several are understood since 1.52.
func (c *call) platforms(name string, since version) ([]ocispec.Platform, error) {
	values := c.URL.Query()[name]
	if c.version < since {
		return nil, nil
	}
	if c.version < 52 && len(values) > 1 {
		return nil, invalid("multiple platform parameters are not supported in this API version; use API version 1.52 or later")
	}
	var out []ocispec.Platform
	for _, v := range values {
		p, err := images.ParsePlatform(v)
		if err != nil {
			return nil, err
		}
		if p != nil {
			out = append(out, *p)
		}
	}
	return out, nil
}

func (s *Server) imageList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	o := images.ListOptions{Manifests: c.version >= 47 && c.flag("manifests"), SharedSize: c.version >= 42 && c.flag("shared-size")}
	if o.Identity = c.version >= 54 && c.flag("identity"); o.Identity && !o.Manifests {
		return invalid("conflicting options: identity requires manifests=1")
	}
	list, err := s.cfg.Images.List(c.Context(), f, o)
	if err != nil {
		return err
	}
	shaped, err := c.imageListShape(list)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, shaped)
}

func (s *Server) imageInspect(c *call) error {
	platform, err := images.ParsePlatform(c.query("platform"))
	if err != nil {
		return err
	}
	manifests := c.version >= 48 && c.flag("manifests")
	if manifests && platform != nil {
		return invalid("conflicting options: manifests and platform options cannot both be set")
	}
	info, err := s.cfg.Images.Inspect(c.Context(), c.vars["name"], platform, manifests)
	if err != nil {
		return err
	}
	shaped, err := c.imageShape(info)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, shaped)
}

func (s *Server) imageSearch(c *call) error {
	limit := 0
	if v := c.query("limit"); v != "" {
		var err error
		if limit, err = strconv.Atoi(v); err != nil || limit < 0 {
			return invalid("invalid limit specified: %q", v)
		}
	}
	f, err := c.filters()
	if err != nil {
		return err
	}
	list, err := s.cfg.Images.Search(c.Context(), c.query("term"), limit, f, c.auth())
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, list)
}

func (s *Server) imagePrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	report, err := s.cfg.Images.Prune(c.Context(), f)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, report)
}

func (s *Server) imageAttestations(c *call) error {
	values := c.URL.Query()["platform"]
	if len(values) > 1 {
		return invalid("only one platform value is currently supported")
	}
	o := images.AttestationOptions{Bodies: c.flag("statement")}
	for _, v := range values {
		var err error
		if o.Platform, err = images.ParsePlatform(v); err != nil {
			return err
		}
	}
	for _, v := range c.URL.Query()["type"] {
		if v = strings.TrimSpace(v); v != "" {
			o.Predicates = append(o.Predicates, v)
		}
	}
	list, err := s.cfg.Images.Attestations(c.Context(), c.vars["name"], o)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, list)
}

// auth reads the header that says who asks a registry. A malformed one counts as
// none, as docker has it.
func (c *call) auth() images.Auth {
	header := c.Header.Get(registry.AuthHeader)
	raw, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		if raw, err = base64.RawURLEncoding.DecodeString(header); err != nil {
			return images.Auth{}
		}
	}
	var a registry.AuthConfig
	if json.Unmarshal(raw, &a) != nil {
		return images.Auth{}
	}
	return authOf(a)
}

func authOf(a registry.AuthConfig) images.Auth {
	if user, password, ok := decodeBasic(a.Auth); ok && a.Username == "" {
		a.Username, a.Password = user, password
	}
	return images.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
}

func decodeBasic(s string) (user, password string, ok bool) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || s == "" {
		return "", "", false
	}
	return strings.Cut(string(raw), ":")
}

// imageCreate pulls, or imports with fromSrc.
func (s *Server) imageCreate(c *call) error {
	platform, err := images.ParsePlatform(c.query("platform"))
	if err != nil {
		return err
	}
	p := &progress{c: c}
	if src := c.query("fromSrc"); src != "" {
		return s.imageImport(c, src, p)
	}
	ref, tag := c.query("fromImage"), c.query("tag")
	if ref == "" {
		return invalid("no image given: name one with fromImage")
	}
	named, err := reference.ParseNormalizedNamed(strings.TrimSuffix(ref, ":"))
	if err != nil {
		return invalid("%v", err)
	}
	if reference.FamiliarName(named) == "scratch" {
		return errdefs.ErrPermissionDenied.WithMessage("'scratch' is a reserved name")
	}
	all := tag == "" && reference.IsNameOnly(named)
	switch {
	case strings.Contains(tag, ":"):
		ref += "@" + tag
	case tag != "":
		ref = reference.TrimNamed(named).String() + ":" + tag
	}
	return p.end(s.cfg.Images.Pull(c.Context(), ref, platform, all, c.auth(), p.report))
}

func (s *Server) imageImport(c *call, src string, p *progress) error {
	platform, err := images.ParsePlatform(c.query("platform"))
	if err != nil {
		return err
	}
	ref := c.query("repo")
	if tag := c.query("tag"); ref != "" && tag != "" {
		ref += ":" + tag
	}
	o := images.ImportOptions{Ref: ref, Message: cmp.Or(c.query("message"), "Imported from "+src), Platform: platform, Changes: c.URL.Query()["changes"]}
	var id string
	if src == "-" {
		id, err = s.cfg.Images.Import(c.Context(), c.Body, o)
	} else {
		id, err = s.cfg.Images.ImportURL(c.Context(), src, o, p.report)
	}
	if err == nil {
		p.report(jsonstream.Message{Status: id})
	}
	return p.end(err)
}

func (s *Server) imagePush(c *call) error {
	platform, err := images.ParsePlatform(c.query("platform"))
	if err != nil {
		return err
	}
	ref, tag := c.vars["name"], c.query("tag")
	if tag != "" {
		ref += ":" + tag
	}
	p := &progress{c: c}
	return p.end(s.cfg.Images.Push(c.Context(), ref, platform, tag == "", c.auth(), p.report))
}

func (s *Server) imageLoad(c *call) error {
	platforms, err := c.platforms("platform", 48)
	if err != nil {
		return err
	}
	p := &progress{c: c}
	report := p.report
	if c.flagOr("quiet", true) {
		report = func(m jsonstream.Message) {
			if m.Stream != "" {
				p.report(m)
			}
		}
	}
	// Clients look for what is wrong with an archive in the progress.
	if err := s.cfg.Images.Load(c.Context(), c.Body, platforms, report); err != nil {
		p.fail(err)
		return nil
	}
	return p.end(nil)
}

func (s *Server) imageSave(c *call) error {
	names := c.URL.Query()["names"]
	if name := c.vars["name"]; name != "" {
		names = []string{name}
	}
	platforms, err := c.platforms("platform", 48)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return invalid("no image given: name at least one")
	}
	write, err := s.cfg.Images.Save(c.Context(), names, platforms)
	if err != nil {
		return err
	}
	w := &begin{w: c.w, kind: "application/x-tar"}
	if err := write(c.Context(), w); err != nil {
		if !w.on {
			return err
		}
		s.log.Warn("saving images failed", "images", names, "error", err)
		panic(http.ErrAbortHandler) // a cut archive must not look complete
	}
	return nil
}

// begin sends the header with the first bytes.
type begin struct {
	w    http.ResponseWriter
	kind string
	on   bool
}

func (b *begin) Write(p []byte) (int, error) {
	if !b.on {
		b.on = true
		b.w.Header().Set("Content-Type", b.kind)
		b.w.WriteHeader(http.StatusOK)
	}
	return b.w.Write(p)
}

func (s *Server) commit(c *call) error {
	var cfg apicontainer.Config
	if err := c.read(&cfg, true); err != nil {
		return err
	}
	ref := c.query("repo")
	if tag := c.query("tag"); ref != "" && tag != "" {
		ref += ":" + tag
	}
	id, err := s.cfg.Images.Commit(c.Context(), images.CommitOptions{Container: c.query("container"), Ref: ref, Author: c.query("author"),
		Comment: c.query("comment"), Pause: c.flagOr("pause", true), Config: &cfg, Changes: c.URL.Query()["changes"]})
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, common.IDResponse{ID: id})
}
