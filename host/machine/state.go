package machine

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/berthvm/berth/host/api"
)

// stateFormat is written into state.json; readers ignore fields they do not know.
const stateFormat = 1

type stateFile struct {
	Format int `json:"format"` // not "version", which is the daemon's
	api.Status
}

// SaveState records what the daemon last knew, for those who ask when it is gone.
func (m Machine) SaveState(s api.Status) error {
	body, err := json.MarshalIndent(stateFile{stateFormat, s}, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(m.stateFile(), append(body, '\n'), 0o600)
}

// LastState says what is known of the machine without asking its daemon, and
// corrects it by whether the daemon lives: the lock decides, not the file. A
// file that is missing or damaged is read as nothing known.
func (m Machine) LastState() api.Status {
	var f stateFile
	body, err := os.ReadFile(m.stateFile())
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	if err != nil {
		f = stateFile{}
	}
	s := f.Status
	s.Name = m.Name
	if Locked(m.DaemonLock()) {
		if s.State == "" || s.State == api.Stopped || s.State == api.Failed {
			s.State = api.Starting // the file is its predecessor's
		}
		return s
	}
	if s.State == api.Starting || s.State == api.Running || s.State == api.Stopping {
		s.LastError = fmt.Sprintf("the daemon (pid %d) died while the machine was %s: see %s", s.PID, s.State, m.DaemonLog())
		s.State = api.Failed
	}
	if s.State == "" {
		s.State = api.Stopped
	}
	s.PID, s.Since, s.Phase, s.Saved = 0, time.Time{}, "", m.Saved()
	return s
}

// Check returns an error that wraps ErrUnknown when the machine does not exist.
func (m Machine) Check() error {
	if m.Exists() {
		return m.checkRecord()
	}
	return fmt.Errorf("%w: %q: create it with \"berth start --machine %s\"", ErrUnknown, m.Name, m.Name)
}
