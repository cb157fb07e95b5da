package builds

import (
	"encoding/json"

	controlapi "github.com/moby/buildkit/api/services/control"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"
	"google.golang.org/protobuf/proto"
)

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

func (t Trace) status(r *controlapi.StatusResponse) {
	if body, err := proto.Marshal(r); err == nil {
		t.aux("moby.buildkit.trace", body)
	}
}

func (t Trace) failed(err error) error { return err }

func (t Trace) done(image string, _ []string) error {
	if image != "" {
		t.aux("moby.image.id", apibuild.Result{ID: image})
	}
	return nil
}
