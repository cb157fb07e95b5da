package record

import (
	"fmt"

	"github.com/moby/moby/api/types/container"
)

// Status is where a container is in its life.
//
//	created ──► running ◄──► paused
//	  │  │      ▲ │  ▲ │       │ │
//	  │  │      │ ▼  │ ▼       │ │
//	  │  │  restarting │ ◄─────┘ │
//	  │  │      ▲ │    │         │
//	  │  │      │ ▼    ▼         │
//	  │  └────► exited ◄─────────┘
//	  ▼           │        (exited ──► running, too)
//	removing ◄────┘
//	  ▲ │
//	  │ ▼
//	 dead        (removing ends in dead, or in nothing)
//
// A container that is restarting has ended and will be started again; it is
// exited when nobody wants that any more. It may be removed, too.
type Status int

// The statuses. Their names (String) are docker's, and what is persisted.
const (
	Created Status = iota
	Running
	Paused
	Restarting
	Exited
	Removing
	Dead // a removal failed half-way
)

var names = [...]string{
	Created: "created", Running: "running", Paused: "paused", Restarting: "restarting",
	Exited: "exited", Removing: "removing", Dead: "dead",
}

func (s Status) String() string {
	if s < 0 || int(s) >= len(names) {
		return "invalid"
	}
	return names[s]
}

// API returns the status in the API's type.
func (s Status) API() container.ContainerState { return container.ContainerState(s.String()) }

// MarshalText writes the name.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name.
func (s *Status) UnmarshalText(text []byte) error {
	for i, name := range names {
		if name == string(text) {
			*s = Status(i)
			return nil
		}
	}
	return fmt.Errorf("unknown container status %q", text)
}

// Alive says whether the container has a process.
func (s Status) Alive() bool { return s == Running || s == Paused }

// next holds the allowed transitions, as they are drawn above. Created goes to
// exited when its start failed.
var next = [...][]Status{
	Created:    {Running, Exited, Removing},
	Running:    {Paused, Restarting, Exited},
	Paused:     {Running, Restarting, Exited},
	Restarting: {Running, Exited, Removing},
	Exited:     {Running, Restarting, Removing},
	Removing:   {Dead},
	Dead:       {Removing},
}

// Transition is the one place where a status changes. It returns an error, and
// changes nothing, when the drawing has no such arrow.
func (s *Status) Transition(to Status) error {
	if *s >= 0 && int(*s) < len(next) {
		for _, ok := range next[*s] {
			if ok == to {
				*s = to
				return nil
			}
		}
	}
	return fmt.Errorf("a container that is %v cannot become %v", *s, to)
}
