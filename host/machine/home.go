// Package machine is what the host keeps of each machine while no process runs:
// where its files are, its configuration, its keys, its data disk, its locks and
// its last state. It knows nothing of hypervisors or of the guest.
//
// All of it belongs to one user of the host. Directories are 0700, keys and
// state 0600. Files are written whole: a temporary file, fsync, rename.
package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Default is the name of the machine that is meant when none is named.
const Default = "default"

// EnvHome is the environment variable that moves all of Berth's files.
const EnvHome = "BERTH_HOME"

// ErrUnknown is wrapped by errors about a machine that does not exist.
var ErrUnknown = errors.New("no such machine")

// ErrAtRisk is wrapped by errors that refuse what could cost the user data.
var ErrAtRisk = errors.New("data at risk")

// Home is the set of directories that hold every machine of one user.
type Home struct {
	Config string // NAME.yaml
	Data   string // NAME/: what must not be lost: data disk, keys
	State  string // NAME/: locks, logs, last state
	Cache  string // what can be found out again
	Root   string // of BERTH_HOME; empty in the platform's directories

	sockets string // the parent of all sockets' directories; short
}

// Locate finds the user's directories: those of the platform, or one
// directory for all when BERTH_HOME is set. It creates nothing.
func Locate(getenv func(string) string) (Home, error) {
	if root := getenv(EnvHome); root != "" {
		root, err := filepath.Abs(root)
		if err != nil {
			return Home{}, fmt.Errorf("%s: %w", EnvHome, err)
		}
		h := under(root, root)
		h.Root = root
		return h, nil
	}
	h, err := platformHome(getenv)
	if err != nil {
		return Home{}, fmt.Errorf("cannot tell where your files belong: %w: set %s", err, EnvHome)
	}
	return h, nil
}

// under is the layout below one root directory.
func under(root, cache string) Home {
	state := filepath.Join(root, "state")
	return Home{
		Config:  filepath.Join(root, "config"),
		Data:    filepath.Join(root, "data"),
		State:   state,
		Cache:   filepath.Join(cache, "cache"),
		sockets: socketParent(state),
	}
}

// Machine names the files of one machine. It is a value and says nothing about
// whether the machine exists: see Exists.
type Machine struct {
	Name       string
	ConfigFile string
	DataDir    string
	StateDir   string
	SocketDir  string // short, since a unix socket's path holds about 100 bytes
	CacheDir   string // shared by all machines
	id         string // differs between machines, also those of other homes and users
}

// ID tells homes apart. It is empty for the platform's own directories.
func (h Home) ID() string {
	if h.Root == "" {
		return ""
	}
	return shortHash(h.Root)
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// Machine returns the files of the machine with that name.
func (h Home) Machine(name string) (Machine, error) {
	if err := checkName(name); err != nil {
		return Machine{}, err
	}
	data := filepath.Join(h.Data, name)
	id := shortHash(data)
	return Machine{
		Name:       name,
		ConfigFile: filepath.Join(h.Config, name+".yaml"),
		DataDir:    data,
		StateDir:   filepath.Join(h.State, name),
		SocketDir:  filepath.Join(h.sockets, id),
		CacheDir:   h.Cache,
		id:         id,
	}, nil
}

// Names lists the machines that exist, in order.
func (h Home) Names() ([]string, error) {
	entries, err := os.ReadDir(h.Data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the machines: %w", err)
	}
	var names []string
	for _, e := range entries {
		m, err := h.Machine(e.Name())
		if err == nil && e.IsDir() && m.Exists() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func checkName(name string) error {
	ok := name != "" && len(name) <= 40 && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	if !ok {
		return fmt.Errorf("invalid machine name %q: use up to 40 lower-case letters, digits and dashes", name)
	}
	return nil
}

// The machine's files.
func (m Machine) recordFile() string { return filepath.Join(m.DataDir, "machine.json") }

// DaemonLog is where the daemon logs.
func (m Machine) DaemonLog() string { return filepath.Join(m.StateDir, "daemon.log") }

// ConsoleLog is where the guest's console goes.
func (m Machine) ConsoleLog() string { return filepath.Join(m.StateDir, "console.log") }

// CrashLog gets what the Go runtime says when the daemon itself crashes.
func (m Machine) CrashLog() string { return filepath.Join(m.StateDir, "crash.log") }

// StateFileName is the file in StateDir that is replaced whenever the state changes.
const StateFileName = "state.json"

func (m Machine) stateFile() string { return filepath.Join(m.StateDir, StateFileName) }

// StartLock is held by whoever is launching or deleting the machine.
func (m Machine) StartLock() string { return filepath.Join(m.StateDir, "start.lock") }

// DaemonLock is held by the machine's daemon for as long as it lives.
func (m Machine) DaemonLock() string { return filepath.Join(m.StateDir, "daemon.lock") }

// VMDir is the driver's directory for run-time state.
func (m Machine) VMDir() string { return filepath.Join(m.SocketDir, "vm") }

// APIAddress, DockerAddress, SSHAddress and ControlAddress are what the daemon
// listens on: paths of unix sockets, or names of pipes on Windows. They lead to
// the daemon's own API and to the guest's Docker API, SSH server and control
// port.
func (m Machine) APIAddress() string { return m.address("api") }

// DockerAddress is described at APIAddress.
func (m Machine) DockerAddress() string { return m.address("docker") }

// SSHAddress is described at APIAddress.
func (m Machine) SSHAddress() string { return m.address("ssh") }

// ControlAddress is described at APIAddress.
func (m Machine) ControlAddress() string { return m.address("control") }

// DockerHost is DockerAddress in the form that DOCKER_HOST takes.
func (m Machine) DockerHost() string { return dockerScheme + filepath.ToSlash(m.DockerAddress()) }

// ContextName is the docker context of the machine.
func (m Machine) ContextName() string {
	if m.Name == Default {
		return "berth"
	}
	return "berth-" + m.Name
}

// Hostname is what the guest calls itself.
func (m Machine) Hostname() string { return m.ContextName() }
