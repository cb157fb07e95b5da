package builds

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"
)

// Classic tells a client as the classic builder did. With Quiet it says the
// image's ID only.
type Classic struct {
	Report func(jsonstream.Message)
	Quiet  bool

	steps map[string]*classicStep // by digest
	open  string                  // whose output came last
	last  string                  // the command of the step that ran last
}

type classicStep struct {
	command string
	shown   bool
}

// stepName splits BuildKit's "[stage 2/3] RUN true".
var stepName = regexp.MustCompile(`^\[(?:[^\]]* )?(\d+)/(\d+)\] (.*)`)

func (c *Classic) say(text string) {
	if !c.Quiet {
		c.Report(jsonstream.Message{Stream: text})
	}
}

func (c *Classic) status(r *controlapi.StatusResponse) {
	if c.steps == nil {
		c.steps = map[string]*classicStep{}
	}
	for _, v := range r.Vertexes {
		c.vertex(v)
	}
	for _, w := range r.Warnings {
		c.say("[Warning] " + string(w.Short) + "\n")
	}
	for _, l := range r.Logs {
		c.output(l)
	}
}

func (c *Classic) vertex(v *controlapi.Vertex) {
	m := stepName.FindStringSubmatch(v.Name)
	if m == nil || v.Started == nil && !v.Cached {
		return
	}
	s := c.steps[v.Digest]
	if s == nil {
		s = &classicStep{command: m[3]}
		c.steps[v.Digest] = s
	}
	if !s.shown {
		s.shown = true
		c.say(fmt.Sprintf("Step %s/%s : %s\n", m[1], m[2], m[3]))
		if v.Cached {
			c.say(" ---> Using cache\n")
		}
	}
	c.last = s.command
}

// output passes a step's output on. Steps that run at once are told apart by a
// line before each change.
func (c *Classic) output(l *controlapi.VertexLog) {
	if s := c.steps[l.Vertex]; s != nil && c.open != "" && c.open != l.Vertex {
		c.say(" ---> " + s.command + "\n")
	}
	c.open = l.Vertex
	c.say(string(l.Msg))
}

// failed words an error as the classic builder did. What is wrong with the Dockerfile is
// the client's fault.
func (c *Classic) failed(err error) error {
	if where := new(parser.LocationError); errors.As(err, &where) {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	var exit *gateway.ExitError
	if !errors.As(err, &exit) || exit.ExitCode == gateway.UnknownExitStatus {
		return err
	}
	command := strings.TrimPrefix(c.last, "RUN ")
	if _, after, ok := strings.Cut(err.Error(), `process "`); ok {
		if quoted, _, ok := strings.Cut(after, `" did not complete`); ok {
			if command, err = strconv.Unquote(`"` + quoted + `"`); err != nil {
				command = quoted
			}
		}
	}
	return &ExitError{Code: int(exit.ExitCode), Command: command}
}

// ExitError is a step that failed.
type ExitError struct {
	Code    int
	Command string
}

// Error reads as the classic builder's.
func (e *ExitError) Error() string {
	return fmt.Sprintf("The command '%s' returned a non-zero code: %d", e.Command, e.Code)
}

func (c *Classic) done(image string, tags []string) error {
	if image == "" {
		return nil
	}
	if c.Quiet {
		c.Report(jsonstream.Message{Stream: image + "\n"})
		return nil
	}
	body, err := json.Marshal(apibuild.Result{ID: image})
	if err != nil {
		return err
	}
	raw := json.RawMessage(body)
	c.Report(jsonstream.Message{Aux: &raw})
	_, hex, _ := strings.Cut(image, ":")
	c.say("Successfully built " + hex[:min(12, len(hex))] + "\n")
	for _, t := range tags {
		if named, err := reference.ParseNormalizedNamed(t); err == nil {
			c.say("Successfully tagged " + reference.FamiliarString(reference.TagNameOnly(named)) + "\n")
		}
	}
	return nil
}
