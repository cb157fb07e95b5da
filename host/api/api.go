// Package api is the control API of a machine's daemon: its types, the handler
// that the daemon serves and the client that commands use.
//
// It is HTTP/1.1 with JSON on a unix socket that only the user can open (a named
// pipe on Windows), so whoever can connect may do everything.
//
//	GET  /v1/status    Status
//	GET  /v1/progress  the start so far and as it goes on: one Event a line, the last has End
//	POST /v1/cancel    gives up a start, unless somebody else follows it too
//	POST /v1/stop      answers with the last Status when the machine is off
//	POST /v1/pause     freezes the machine; whoever connects to it sets it going again
//	POST /v1/resume    likewise
//	POST /v1/save      saves the machine's state and answers with the last Status when it is off
//	GET  /v1/logs      text: source=daemon or console, tail=N lines, follow=true
//	GET  /v1/watch     one Snapshot a line, the first at once and one for each change
//	GET  /v1/usage     Usage
//	POST /v1/containers/{id}/stop  stops a container, as docker's API does
//
// An error is a JSON object {"message": ...} with a status of 400 or above.
package api

import (
	"time"
)

// State is what a machine is doing.
//
//	Stopped → Starting → Running → Stopping → Stopped
//	              │         │  ↺ Starting (the guest rebooted)
//	              └────────→┴→ Failed
type State string

// The states. Failed is stopped too, but not because anybody asked.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// Alive reports whether a machine in that state has a daemon.
func (s State) Alive() bool { return s == Starting || s == Running || s == Stopping }

// Kind says what sort of failure ended a machine, for those who react to it.
type Kind string

// The kinds of failures.
const (
	KindFailure     Kind = "failure"
	KindUnsupported Kind = "unsupported" // this host cannot run the machine
	KindTimeout     Kind = "timeout"
	KindAtRisk      Kind = "at-risk" // going on could cost data
	KindCanceled    Kind = "canceled"
)

// Status is everything there is to know about a machine.
type Status struct {
	Name  string    `json:"name"`
	State State     `json:"state"`
	Since time.Time `json:"since,omitzero"` // when it got into the state
	PID   int       `json:"pid,omitempty"`  // of the daemon
	// Paused says that a Running machine's CPUs are frozen.
	Paused bool   `json:"paused,omitempty"`
	Phase  string `json:"phase,omitempty"`
	// Saved is when the state of a Stopped machine was saved, from which the next
	// start goes on.
	Saved time.Time `json:"saved,omitzero"`

	Version      string `json:"version,omitempty"` // of the daemon
	Driver       string `json:"driver,omitempty"`
	Hypervisor   string `json:"hypervisor,omitempty"`
	Acceleration string `json:"acceleration,omitempty"`
	// Reason says why the acceleration is not better than it is.
	Reason string `json:"accelerationReason,omitempty"`
	Arch   string `json:"arch,omitempty"`
	Kernel string `json:"kernel,omitempty"`

	CPUs      int   `json:"cpus,omitempty"`
	MemoryMiB int   `json:"memoryMiB,omitempty"`
	DiskBytes int64 `json:"diskBytes,omitempty"` // as the guest sees it
	DiskUsed  int64 `json:"diskUsed,omitempty"`  // of the host's disk, in bytes

	DockerHost   string  `json:"dockerHost"` // what DOCKER_HOST takes: unix://... or npipe://...
	DockerSocket string  `json:"dockerSocket"`
	Config       string  `json:"config"`
	Console      string  `json:"console"`
	Log          string  `json:"log"`
	Lent         []Lent  `json:"lent,omitempty"` // all that the guest can reach on this host
	Engine       *Engine `json:"engine,omitempty"`
	Start        []Phase `json:"start,omitempty"` // the phases of the last start, in order

	LastError     string `json:"lastError,omitempty"`
	LastErrorKind Kind   `json:"lastErrorKind,omitempty"`
}

// Lent is one thing of the host that the guest can use.
type Lent struct {
	What   string `json:"what"` // "loopback", "dns", "outbound network", "port", "folder"
	Detail string `json:"detail"`
}

// Engine is what the guest last said about its engine.
type Engine struct {
	Running  bool   `json:"running"`
	Restarts int    `json:"restarts"`
	Reason   string `json:"reason,omitempty"`
}

// PhaseRestore is the phase in which a machine goes on from its saved state. When it
// ends with an error the machine boots anew.
const PhaseRestore = "restore"

// Phase is one step of a start. Guest phases are those that PID 1 reports.
type Phase struct {
	Name  string        `json:"name"`
	Guest bool          `json:"guest,omitempty"`
	Done  bool          `json:"done"`
	Begin time.Duration `json:"begin"` // nanoseconds since the start began
	Took  time.Duration `json:"took"`  // nanoseconds; zero until done
	Error string        `json:"error,omitempty"`
}

// Event is one line of a start's progress. Exactly one field is set.
type Event struct {
	Phase *Phase  `json:"phase,omitempty"`
	End   *Status `json:"end,omitempty"`
}

// Snapshot is a machine at one moment, with the containers that run in it.
type Snapshot struct {
	Status     Status      `json:"status"`
	Containers []Container `json:"containers"` // running or paused ones, by name; none unless the machine is Running
}

// Container is one that runs.
type Container struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Image string `json:"image"`
	State string `json:"state"` // docker's: "running", "paused" or "restarting"
	Ports []Port `json:"ports,omitempty"`
}

// Port is a container's port that is published on the host.
type Port struct {
	Host      uint16 `json:"host"`
	Container uint16 `json:"container"`
	Protocol  string `json:"protocol"` // "tcp" or "udp"
}

// Usage is what the guest has used, as its kernel counts.
type Usage struct {
	Up          time.Duration `json:"up"`   // nanoseconds since the guest's kernel began
	Busy        time.Duration `json:"busy"` // nanoseconds that its CPUs have worked since then, all together
	CPUs        int           `json:"cpus"`
	MemoryUsed  int64         `json:"memoryUsed"` // bytes that are not available to new programs
	MemoryTotal int64         `json:"memoryTotal"`
}

// CPUSince is the share of one CPU that was used between an earlier Usage of the
// same boot and this one: 1 is one CPU all the time. It is 0 when that cannot be told.
func (u Usage) CPUSince(earlier Usage) float64 {
	up, busy := u.Up-earlier.Up, u.Busy-earlier.Busy
	if up <= 0 || busy < 0 {
		return 0
	}
	return min(float64(busy)/float64(up), float64(u.CPUs))
}

// LogQuery asks for a log.
type LogQuery struct {
	Source string // LogDaemon or LogConsole
	Tail   int    // lines; negative for all there are
	Follow bool
}

// The logs of a machine.
const (
	LogDaemon  = "daemon"
	LogConsole = "console"
)

type apiError struct {
	Message string `json:"message"`
}
