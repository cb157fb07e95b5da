package builds

import (
	"encoding/json"
	"fmt"

	controlapi "github.com/moby/buildkit/api/services/control"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthvm/berth/guest/build"
)

// stderr is the number of a step's stream.
const stderr = 2

// Trace tells a client by BuildKit's own messages.
type Trace func(jsonstream.Message)

func (t Trace) aux(id string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		return
	}
	raw := json.RawMessage(body)
	t(jsonstream.Message{ID: id, Aux: &raw})
}

// status passes a message on. Clients of this protocol are older than BuildKit's
// warnings, which they are told as what the step says.
func (t Trace) status(r *controlapi.StatusResponse) {
	for _, w := range r.Warnings {
		r.Logs = append(r.Logs, &controlapi.VertexLog{
			Vertex: w.Vertex, Timestamp: timestamppb.Now(), Stream: stderr, Msg: fmt.Appendf(nil, "WARNING: %s\n", w.Short),
		})
	}
	if body, err := proto.Marshal(r); err == nil {
		t.aux("moby.buildkit.trace", body)
	}
}

func (t Trace) planned([]build.Instruction) {}

func (t Trace) failed(err error) error { return err }

func (t Trace) done(made build.Result, _ []string) error {
	if made.ID != "" {
		t.aux("moby.image.id", apibuild.Result{ID: made.ID})
	}
	return nil
}
