package builds

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/moby/api/types/jsonstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/engine/filter"
)

// TestClassic: what a build says reads as the classic builder's words.
func TestClassic(t *testing.T) {
	now := timestamppb.Now()
	var got strings.Builder
	report := func(m jsonstream.Message) {
		got.WriteString(m.Stream)
		if m.Aux != nil {
			fmt.Fprintf(&got, "%s\n", *m.Aux)
		}
	}
	tell := func(c *Classic) {
		c.status(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{
			{Digest: "0", Name: "[internal] load build definition from Dockerfile", Started: now},
			{Digest: "a", Name: "[1/2] FROM hello", Started: now},
			{Digest: "b", Name: "[second 2/2] RUN make [all]"},
		}})
		c.status(&controlapi.StatusResponse{
			Vertexes: []*controlapi.Vertex{
				{Digest: "b", Name: "[second 2/2] RUN make [all]", Started: now},
				{Digest: "c", Name: "[stage-1 1/1] COPY a b", Cached: true},
				{Digest: "b", Name: "[second 2/2] RUN make [all]", Started: now, Completed: now},
			},
			Logs: []*controlapi.VertexLog{{Vertex: "b", Msg: []byte("made\n")}},
		})
		if err := c.done(build.Result{ID: "sha256:0123456789abcdef"}, []string{"docker.io/library/x:latest", "localhost:5/y:1"}); err != nil {
			t.Fatal(err)
		}
	}
	tell(&Classic{Report: report})
	want := "Step 1/2 : FROM hello\nStep 2/2 : RUN make [all]\nStep 1/1 : COPY a b\n ---> Using cache\nmade\n" +
		`{"ID":"sha256:0123456789abcdef"}` + "\nSuccessfully built 0123456789ab\nSuccessfully tagged x:latest\nSuccessfully tagged localhost:5/y:1\n"
	if got.String() != want {
		t.Errorf("it says\n%s\nwant\n%s", &got, want)
	}
	got.Reset()
	tell(&Classic{Report: report, Quiet: true})
	if got.String() != "sha256:0123456789abcdef\n" {
		t.Errorf("quiet, it says %q", &got)
	}
}

// TestClassicInstructions: instructions are told of in the Dockerfile's order, each once
// it is known how it went.
func TestClassicInstructions(t *testing.T) {
	plan := []build.Instruction{
		{Text: "ARG BASE=hello", Stage: -1},
		{Text: "FROM ${BASE} AS first", From: true, Steps: []string{"from1"}},
		{Text: "RUN make", Steps: []string{"make"}},
		{Text: "FROM first AS second", Stage: 1, From: true},
		{Text: "LABEL l=v", Stage: 1},
		{Text: "FROM hello", Stage: 3, From: true, Steps: []string{"from2"}},
		{Text: "ENV A=b", Stage: 3},
		{Text: "COPY --from=first /a /b", Stage: 3, Steps: []string{"copy"}},
		{Text: "USER 1", Stage: 3},
		{Text: "RUN run", Stage: 3, Steps: []string{"run"}},
		{Text: "CMD x", Stage: 3},
	}
	now := timestamppb.Now()
	vertex := func(digest string, begun, ended, cached bool) *controlapi.StatusResponse {
		v := &controlapi.Vertex{Digest: digest, Name: "[x 1/2] RUN " + digest, Cached: cached}
		if begun {
			v.Started = now
		}
		if ended {
			v.Completed = now
		}
		return &controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}}
	}
	var (
		known  = func(d string) *controlapi.StatusResponse { return vertex(d, false, false, false) }
		begun  = func(d string) *controlapi.StatusResponse { return vertex(d, true, false, false) }
		ended  = func(d string) *controlapi.StatusResponse { return vertex(d, true, true, false) }
		cached = func(d string) *controlapi.StatusResponse { return vertex(d, true, true, true) }
		says   = func(d string) *controlapi.StatusResponse {
			return &controlapi.StatusResponse{Logs: []*controlapi.VertexLog{{Vertex: d, Msg: []byte(d + " says\n")}}}
		}
	)
	const head = "Step 1/11 : ARG BASE=hello\n"
	for _, c := range []struct {
		name    string
		events  []*controlapi.StatusResponse
		before  string // the end
		failed  bool
		again   bool
		noCache bool
		after   string
	}{
		{name: "warm", events: []*controlapi.StatusResponse{
			known("make"), ended("from2"), ended("from1"), cached("copy"), cached("make"), cached("run"),
		}, before: head + `Step 2/11 : FROM ${BASE} AS first
Step 3/11 : RUN make
 ---> Using cache
Step 4/11 : FROM first AS second
Step 5/11 : LABEL l=v
 ---> Using cache
Step 6/11 : FROM hello
Step 7/11 : ENV A=b
 ---> Using cache
Step 8/11 : COPY --from=first /a /b
 ---> Using cache
Step 9/11 : USER 1
 ---> Using cache
Step 10/11 : RUN run
 ---> Using cache
`, again: true, after: "Step 11/11 : CMD x\n ---> Using cache\n"},
		{name: "all but the last", events: []*controlapi.StatusResponse{
			ended("from1"), cached("make"), ended("from2"), cached("copy"), cached("run"),
		}, after: "Step 11/11 : CMD x\n"},
		{name: "cold", events: []*controlapi.StatusResponse{
			ended("from2"), begun("from1"), ended("from1"), begun("make"), says("make"), ended("make"),
			begun("copy"), ended("copy"), begun("run"), says("run"), ended("run"),
		}, before: head + `Step 2/11 : FROM ${BASE} AS first
Step 3/11 : RUN make
make says
Step 4/11 : FROM first AS second
Step 5/11 : LABEL l=v
Step 6/11 : FROM hello
Step 7/11 : ENV A=b
Step 8/11 : COPY --from=first /a /b
Step 9/11 : USER 1
Step 10/11 : RUN run
run says
Step 11/11 : CMD x
`},
		{name: "without the cache", noCache: true, events: []*controlapi.StatusResponse{
			ended("from1"), ended("make"), ended("from2"), ended("copy"), ended("run"),
		}, again: true, after: "Step 11/11 : CMD x\n"},
		{name: "two at once", events: []*controlapi.StatusResponse{
			ended("from1"), ended("from2"), begun("make"), begun("run"), says("run"), says("make"),
		}, before: head + "Step 2/11 : FROM ${BASE} AS first\nStep 3/11 : RUN make\nmake says\n"},
		{name: "failed", events: []*controlapi.StatusResponse{
			ended("from1"), ended("from2"), begun("make"), cached("copy"), begun("run"), says("run"),
		}, before: head + "Step 2/11 : FROM ${BASE} AS first\nStep 3/11 : RUN make\n", failed: true, after: `Step 4/11 : FROM first AS second
Step 5/11 : LABEL l=v
 ---> Using cache
Step 6/11 : FROM hello
Step 7/11 : ENV A=b
 ---> Using cache
Step 8/11 : COPY --from=first /a /b
 ---> Using cache
Step 9/11 : USER 1
Step 10/11 : RUN run
run says
`},
		{name: "steps that never began", again: true, after: head + `Step 2/11 : FROM ${BASE} AS first
Step 3/11 : RUN make
 ---> Using cache
Step 4/11 : FROM first AS second
Step 5/11 : LABEL l=v
 ---> Using cache
Step 6/11 : FROM hello
Step 7/11 : ENV A=b
 ---> Using cache
Step 8/11 : COPY --from=first /a /b
 ---> Using cache
Step 9/11 : USER 1
 ---> Using cache
Step 10/11 : RUN run
 ---> Using cache
Step 11/11 : CMD x
 ---> Using cache
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got strings.Builder
			out := &Classic{Report: func(m jsonstream.Message) { got.WriteString(m.Stream) }, NoCache: c.noCache}
			out.planned(plan)
			for _, e := range c.events {
				out.status(e)
			}
			if c.before != "" && got.String() != c.before {
				t.Errorf("before the end it says\n%s\nwant\n%s", &got, c.before)
			}
			if c.failed {
				if err := out.failed(io.EOF); err != io.EOF {
					t.Error(err)
				}
			} else if err := out.done(build.Result{Again: c.again}, nil); err != nil {
				t.Error(err)
			}
			if all := got.String(); !strings.HasSuffix(all, c.after) || c.noCache && strings.Contains(all, "Using cache") {
				t.Errorf("it says\n%s\nwant at the end\n%s", all, c.after)
			}
		})
	}
}

func TestClassicFailure(t *testing.T) {
	exit := &gateway.ExitError{ExitCode: 3}
	c := &Classic{last: "RUN make"}
	for in, want := range map[error]string{
		errors.New("other"): "other",
		fmt.Errorf("failed to solve: process \"/bin/sh -c false\" did not complete successfully: %w", exit): "The command '/bin/sh -c false' returned a non-zero code: 3",
		fmt.Errorf("process %q did not complete successfully: %w", `/bin/sh -c echo "a"`, exit):             `The command '/bin/sh -c echo "a"' returned a non-zero code: 3`,
		fmt.Errorf("strange: %w", exit): "The command 'make' returned a non-zero code: 3",
	} {
		if got := c.failed(in).Error(); got != want {
			t.Errorf("%v reads %q, want %q", in, got, want)
		}
	}
	bad := parser.WithLocation(errors.New("unknown instruction: RUNN"), []parser.Range{{}})
	if err := c.failed(fmt.Errorf("dockerfile parse error: %w", bad)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "RUNN") {
		t.Errorf("a Dockerfile that is none: %v", err)
	}
	var ours *ExitError
	if !errors.As(c.failed(exit), &ours) || ours.Code != 3 {
		t.Errorf("the code is %v", ours)
	}
}

// TestTraceWarnings: a client that knows no warnings is told as a step would.
func TestTraceWarnings(t *testing.T) {
	var got controlapi.StatusResponse
	trace := Trace(func(m jsonstream.Message) {
		var body []byte
		if err := json.Unmarshal(*m.Aux, &body); err != nil || m.ID != "moby.buildkit.trace" {
			t.Fatalf("%s, %v", m.ID, err)
		}
		if err := proto.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
	})
	trace.status(&controlapi.StatusResponse{Warnings: []*controlapi.VertexWarning{{Vertex: "v", Short: []byte("careful")}}})
	if len(got.Logs) != 1 || got.Logs[0].Vertex != "v" || string(got.Logs[0].Msg) != "WARNING: careful\n" || len(got.Warnings) != 1 {
		t.Errorf("the client is told %v", &got)
	}
}

func TestPruneOptions(t *testing.T) {
	set := func(kv ...string) filter.Set {
		f := filter.Set{}
		for i := 0; i < len(kv); i += 2 {
			f.Add(kv[i], kv[i+1])
		}
		return f
	}
	for _, c := range []struct {
		in      filter.Set
		unused  int64
		filters string
		bad     bool
	}{
		{in: set()},
		{in: set("until", "24h"), unused: 24 * 3600e9},
		{in: set("unused-for", "1s"), unused: 1e9},
		{in: set("id", "abc", "type", "source.local", "shared", "true"), filters: `id~="abc",type=="source.local",shared`},
		{in: set("until", "tomorrow"), bad: true},
		{in: set("until", "1h", "until", "2h"), bad: true},
		{in: set("color", "red"), bad: true},
	} {
		o, err := PruneOptions{Filters: c.in}.builders()
		if c.bad {
			if err == nil {
				t.Errorf("%v is taken", c.in)
			}
			continue
		}
		if err != nil || o.Unused != c.unused || strings.Join(o.Filters, ";") != c.filters {
			t.Errorf("%v: %+v, %v", c.in, o, err)
		}
	}
}
