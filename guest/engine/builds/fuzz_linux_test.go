package builds

import (
	"encoding/json"
	"strings"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/moby/api/types/jsonstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/engine/filter"
)

// FuzzStatus: whatever a step is called and says, its client gets it in messages that
// are JSON, and each of its words.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(nil), "[1/2] RUN make", "made\n", "sha256:0123456789abcdef", "docker.io/library/x:latest")
	seed, err := proto.Marshal(&controlapi.StatusResponse{
		Vertexes: []*controlapi.Vertex{{Digest: "a", Name: "[x 1/1] FROM y", Started: timestamppb.Now(), Cached: true}},
		Warnings: []*controlapi.VertexWarning{{Vertex: "a", Short: []byte("w")}}, Logs: []*controlapi.VertexLog{{Vertex: "b", Msg: []byte("\xff")}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, "[99999999999999999999/1] ", "\xff\x00", "", "::")
	f.Fuzz(func(t *testing.T, status []byte, name, said, image, tag string) {
		var r controlapi.StatusResponse
		if proto.Unmarshal(status, &r) != nil {
			r.Reset()
		}
		r.Vertexes = append(r.Vertexes, &controlapi.Vertex{Digest: "v", Name: strings.ToValidUTF8(name, "?"), Started: timestamppb.Now()})
		r.Logs = append(r.Logs, &controlapi.VertexLog{Vertex: "v", Msg: []byte(said)})
		var text strings.Builder
		report := func(m jsonstream.Message) {
			if _, err := json.Marshal(m); err != nil {
				t.Errorf("%+v is no message: %v", m, err)
			}
			text.WriteString(m.Stream)
		}
		inTurn := &Classic{Report: report}
		inTurn.planned([]build.Instruction{{Text: "FROM y", From: true}, {Text: "ENV A=b"}, {Text: name, Steps: []string{"v"}}})
		for _, out := range []Output{inTurn, &Classic{Report: report}, &Classic{Report: report, Quiet: true}, Trace(report)} {
			out.status(&r)
			if err := out.done(build.Result{ID: image}, []string{tag}); err != nil {
				t.Error(err)
			}
			if c, ok := out.(*Classic); ok && !c.Quiet && !strings.Contains(text.String(), said) {
				t.Errorf("%q is not among what is said: %q", said, &text)
			}
			text.Reset()
		}
	})
}

// FuzzPruneOptions: filters are refused, or become one of BuildKit's.
func FuzzPruneOptions(f *testing.F) {
	for _, seed := range [][2]string{{"until", "24h"}, {"id", `a"b`}, {"type", "source.local"}, {"shared", "true"}, {"color", "red"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		set := filter.Set{}
		set.Add(name, value)
		if o, err := (PruneOptions{Filters: set}).builders(); err == nil && len(o.Filters) > 1 {
			t.Errorf("%s=%q became %q", name, value, o.Filters)
		}
	})
}
