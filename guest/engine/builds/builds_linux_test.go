package builds

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/moby/api/types/jsonstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

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
		if err := c.done("sha256:0123456789abcdef", []string{"docker.io/library/x:latest", "localhost:5/y:1"}); err != nil {
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
