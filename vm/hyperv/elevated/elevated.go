// Package elevated lets a process that is not elevated have machines of the Host
// Compute System: a service of Windows makes them for the one user who has
// installed it. The service does that and nothing else, and nothing of it is a
// shell for the user: it takes no document of the system's but a compute.Design,
// which it checks, and gives a machine only files that the user may open.
//
// # On the pipe
//
// The client connects to Pipe and sends frames of guest/wire with a Request; the
// service answers each with a Reply of the same ID, not always in their order. One
// connection has at most one machine, made by Request.Create. From then on the
// service also sends a Reply for each of the machine's events. The machine ends
// with the connection, so that it cannot outlive the client's process.
//
// # Who trusts whom
//
// Who may connect is the pipe's access list: the system, administrators, and the
// user whom the service was installed for, none by network, and none of whom may
// make a pipe of that name. The service takes the user from the connection, never
// from a frame. The client lets the service act as the user, so it makes sure
// first that the pipe belongs to the system or administrators.
package elevated

import (
	"errors"
	"fmt"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// Pipe is the service's name on the host.
const Pipe = compute.PipePrefix + "service"

// maxMachines is how many machines the service runs at once.
const maxMachines = 16

// Request is one frame of the client's. One field besides ID is set.
type Request struct {
	ID     uint64          `json:"id"` // not 0, and of no request that is under way
	Probe  bool            `json:"probe,omitempty"`
	Create *compute.Design `json:"create,omitempty"`
	Order  *compute.Order  `json:"order,omitempty"`
}

// Reply is one frame of the service's: the answer to the request with its ID, or an
// event, whose ID is 0.
type Reply struct {
	ID        uint64         `json:"id,omitempty"`
	Error     string         `json:"error,omitempty"`
	Kind      Kind           `json:"kind,omitempty"`
	Version   string         `json:"version,omitempty"`   // to Probe
	RuntimeID string         `json:"runtimeID,omitempty"` // to Create
	Event     *compute.Event `json:"event,omitempty"`
}

// Kind says which of the errors of package vm an error is.
type Kind string

// The kinds, see package vm.
const (
	KindUnavailable Kind = "unavailable"
	KindNotRunning  Kind = "not running"
)

// kinds are the errors, by their kinds.
var kinds = map[Kind]error{KindUnavailable: vm.ErrUnavailable, KindNotRunning: vm.ErrNotRunning}

// fail is the reply for an error; nil is success.
func (r Reply) fail(err error) Reply {
	if err == nil {
		return r
	}
	r.Error = err.Error()
	for kind, is := range kinds {
		if errors.Is(err, is) {
			r.Kind = kind
		}
	}
	return r
}

// err is the reply's error.
func (r Reply) err() error {
	if r.Error == "" {
		return nil
	}
	if is, ok := kinds[r.Kind]; ok {
		return &remoteError{r.Error, is}
	}
	return errors.New(r.Error)
}

// remoteError is an error of the service's, whose text has the kind's in it.
type remoteError struct {
	text string
	is   error
}

// Error implements error.
func (e *remoteError) Error() string { return e.text }

// Unwrap returns the kind.
func (e *remoteError) Unwrap() error { return e.is }

// ErrNotInstalled says that there is no service to be reached. It is a
// vm.ErrUnavailable.
var ErrNotInstalled = fmt.Errorf(`%w: Windows lets only administrators start virtual machines: run "berth service install" once, which asks for that right and installs a service that does it for you`, vm.ErrUnavailable)

// access is the SDDL of the pipe for a user. The user gets all that reading and
// writing takes, but not FILE_CREATE_PIPE_INSTANCE, which is the same bit as
// appending to a file.
func access(sid string) string {
	return "D:P(D;;GA;;;NU)(A;;GA;;;SY)(A;;GA;;;BA)(A;;0x12019b;;;" + sid + ")"
}

// clientAccess is what the client opens the pipe with.
const clientAccess = 0x12019b
