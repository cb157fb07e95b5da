package builds

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/berthvm/berth/guest/build"
)

// Classic tells a client as the classic builder did: of each of the Dockerfile's
// instructions, numbered in its order, though BuildKit's steps run at once. Of stages it
// counts those that are built. It says that an instruction's result comes from the cache,
// but neither which image or container that is: BuildKit has none in between. Where the
// instructions are not known, as with a frontend from a registry, it counts BuildKit's
// own steps.
//
// With Quiet it says the image's ID only. With NoCache no instruction that has nothing to
// do counts as one from the cache.
type Classic struct {
	Report  func(jsonstream.Message)
	Quiet   bool
	NoCache bool

	mu    sync.Mutex              // guards what follows
	steps map[string]*classicStep // BuildKit's by digest
	open  string                  // whose output came last
	last  string                  // the command of the step that ran last

	plan  []build.Instruction
	next  int           // the instruction that is to be told of, or whose end is awaited
	begun bool          // it was told of
	ended *build.Result // nil while the build goes on
}

type classicStep struct {
	command               string
	shown                 bool // by its own number
	started, done, cached bool
	said                  []byte // not passed on yet
}

// stepName splits BuildKit's "[stage 2/3] RUN true".
var stepName = regexp.MustCompile(`^\[(?:[^\]]* )?(\d+)/(\d+)\] (.*)`)

func (c *Classic) say(text string) {
	if !c.Quiet {
		c.Report(jsonstream.Message{Stream: text})
	}
}

func (c *Classic) planned(list []build.Instruction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plan = list
}

func (c *Classic) status(r *controlapi.StatusResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range r.Vertexes {
		c.vertex(v)
	}
	for _, w := range r.Warnings {
		c.say("[Warning] " + string(w.Short) + "\n")
	}
	for _, l := range r.Logs {
		c.output(l)
	}
	c.advance()
}

func (c *Classic) step(digest string) *classicStep {
	if c.steps == nil {
		c.steps = map[string]*classicStep{}
	}
	s := c.steps[digest]
	if s == nil {
		s = &classicStep{}
		c.steps[digest] = s
	}
	return s
}

func (c *Classic) vertex(v *controlapi.Vertex) {
	m := stepName.FindStringSubmatch(v.Name)
	if m == nil || v.Started == nil && !v.Cached {
		return
	}
	s := c.step(v.Digest)
	s.command, s.started = m[3], true
	s.cached = s.cached || v.Cached
	s.done = s.done || v.Cached || v.Completed != nil
	if c.plan == nil && !s.shown {
		s.shown = true
		c.announce(m[1], m[2], m[3], v.Cached)
	}
	c.last = s.command
}

func (c *Classic) announce(n, of any, instruction string, cached bool) {
	c.say(fmt.Sprintf("Step %v/%v : %s\n", n, of, instruction))
	if cached {
		c.say(" ---> Using cache\n")
	}
}

// output passes a step's output on, or keeps it until the step's turn: 2 MiB at most, by
// BuildKit's limit. Steps that run at once and have no turns are told apart by a line
// before each change.
func (c *Classic) output(l *controlapi.VertexLog) {
	if i := slices.IndexFunc(c.plan, func(in build.Instruction) bool { return slices.Contains(in.Steps, l.Vertex) }); i >= c.next {
		s := c.step(l.Vertex)
		s.said = append(s.said, l.Msg...)
		return
	}
	if s := c.steps[l.Vertex]; s != nil && c.open != "" && c.open != l.Vertex {
		c.say(" ---> " + s.command + "\n")
	}
	c.open = l.Vertex
	c.say(string(l.Msg))
}

// advance tells of instructions for as long as it is known how they went.
func (c *Classic) advance() {
	for c.next < len(c.plan) {
		in := c.plan[c.next]
		if !c.begun {
			cached, known := c.outcome(c.next)
			if !known {
				return
			}
			c.begun = true
			c.announce(c.next+1, len(c.plan), in.Text, cached)
		}
		if !c.carriedOut(in) && c.ended == nil {
			return
		}
		c.next++
		c.begun = false
	}
}

// carriedOut passes on what an instruction's steps have said, and says whether they are
// done.
func (c *Classic) carriedOut(in build.Instruction) bool {
	done := true
	for _, digest := range in.Steps {
		s := c.step(digest)
		if len(s.said) > 0 {
			c.open = digest
			c.say(string(s.said))
			s.said = nil
		}
		done = done && s.done
	}
	return done
}

// outcome says whether the result of the instruction with an index comes from the cache,
// once that is known: of a step's, when it begins. Where nothing needs to be done, it does
// if that of the steps before it in its stage and of the next step does; the image as a
// whole is the step after the last.
func (c *Classic) outcome(i int) (cached, known bool) {
	in := c.plan[i]
	switch {
	case len(in.Steps) > 0:
		cached, known = c.ran(in)
		return cached && !in.From, known
	case in.From || in.Stage < 0 || c.NoCache:
		return false, true
	}
	for j := i - 1; !c.plan[j].From; j-- {
		if cached, _ := c.ran(c.plan[j]); !cached {
			return false, true
		}
	}
	for _, after := range c.plan[i+1:] {
		if len(after.Steps) > 0 && !after.From {
			return c.ran(after)
		}
	}
	return c.ended != nil && c.ended.Again, c.ended != nil
}

// ran says whether all of an instruction's steps had their results from the cache, once
// one of them has begun. In a build that has succeeded, one that never began had no need
// to.
func (c *Classic) ran(in build.Instruction) (cached, known bool) {
	cached = true
	for _, digest := range in.Steps {
		s := c.step(digest)
		known = known || s.started
		cached = cached && (s.cached || c.ended != nil && !s.started)
	}
	return cached, known || c.ended != nil
}

// abandon tells of what was begun of the instructions that are left.
func (c *Classic) abandon() {
	left := len(c.plan)
	for left > c.next && !slices.ContainsFunc(c.plan[left-1].Steps, func(d string) bool { return c.step(d).started }) {
		left--
	}
	for ; c.next < left; c.next++ {
		cached, known := c.outcome(c.next)
		if known && !c.begun {
			c.announce(c.next+1, len(c.plan), c.plan[c.next].Text, cached)
		}
		c.begun = false
		c.carriedOut(c.plan[c.next])
	}
}

// failed words an error as the classic builder did. What is wrong with the Dockerfile is
// the client's fault.
func (c *Classic) failed(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandon()
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

func (c *Classic) done(made build.Result, tags []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = &made
	c.advance()
	if made.ID == "" {
		return nil
	}
	if c.Quiet {
		c.Report(jsonstream.Message{Stream: made.ID + "\n"})
		return nil
	}
	body, err := json.Marshal(apibuild.Result{ID: made.ID})
	if err != nil {
		return err
	}
	raw := json.RawMessage(body)
	c.Report(jsonstream.Message{Aux: &raw})
	_, hex, _ := strings.Cut(made.ID, ":")
	c.say("Successfully built " + hex[:min(12, len(hex))] + "\n")
	for _, t := range tags {
		if named, err := reference.ParseNormalizedNamed(t); err == nil {
			c.say("Successfully tagged " + reference.FamiliarString(reference.TagNameOnly(named)) + "\n")
		}
	}
	return nil
}
