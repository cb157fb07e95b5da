// Package record holds what the engine remembers of a container, and keeps it on
// disk: one directory for each container, with one JSON file in it that is always
// written whole.
package record

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/ident"
)

// Schema is the version of what lies on disk. A store of a later version is
// refused before anything is written.
const Schema = 1

// Record is all that is remembered of a container. Whoever holds one guards it.
type Record struct {
	Schema  int       `json:"schema"`
	ID      string    `json:"id"`
	Name    string    `json:"name"` // without a slash
	Created time.Time `json:"created"`

	ImageID    string                `json:"imageID"` // digest of what the image's name points at
	Manifest   *ocispec.Descriptor   `json:"manifest,omitempty"`
	Platform   *ocispec.Platform     `json:"platform,omitempty"` // as asked for at create
	Config     *container.Config     `json:"config"`
	HostConfig *container.HostConfig `json:"hostConfig"`
	// Endpoints are the networks wanted, by name, with what the user asked for.
	Endpoints map[string]*network.EndpointSettings `json:"endpoints,omitempty"`
	Mounts    []Mount                              `json:"mounts,omitempty"`
	Links     []Link                               `json:"links,omitempty"`

	State State `json:"state"`
}

// Link is a name that only this container uses for another, by the default bridge.
type Link struct {
	ID    string `json:"id"`
	Alias string `json:"alias"`
}

// Mount is one mount that the user asked for, resolved.
type Mount struct {
	container.MountPoint
	Options  []string `json:"options,omitempty"` // of a tmpfs
	Subpath  string   `json:"subpath,omitempty"`
	NoCopy   bool     `json:"noCopy,omitempty"`
	FromBind bool     `json:"fromBind,omitempty"` // -v: a missing source directory is made
	Anon     bool     `json:"anon,omitempty"`     // an anonymous volume: it goes with the container
	ReadOnly string   `json:"readOnly,omitempty"` // of a bind that is not writable: "", with all below, or ReadOnlyTop
	Flat     bool     `json:"flat,omitempty"`     // bind without the mounts below
	ImageID  string   `json:"imageID,omitempty"`  // of an image mount
	Hidden   bool     `json:"hidden,omitempty"`   // of --tmpfs: inspect does not list it
	Key      string   `json:"key,omitempty"`      // of an image mount's root file system in the store
}

// ReadOnlyTop makes the mount read-only, and not those below it.
const ReadOnlyTop = "non-recursive"

// State is how a container fares.
type State struct {
	Status     Status    `json:"status"`
	PID        int       `json:"pid,omitempty"`
	ExitCode   int       `json:"exitCode"`
	Error      string    `json:"error,omitempty"`
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	Boot       string    `json:"boot,omitempty"` // of the machine, when it was started

	RestartCount int  `json:"restartCount,omitempty"`
	Stopped      bool `json:"stopped,omitempty"` // by the user: unless-stopped and always heed it

	Health *dockerHealth `json:"health,omitempty"`
}

type dockerHealth = container.Health

// Healthcheck is the image spec's type, under the name the API uses.
type Healthcheck = dockerspec.HealthcheckConfig

// NewID returns a new container ID: 64 hex digits, of which the first 12 are
// not all decimal, so that no short ID looks like a number.
func NewID() string {
	var b [32]byte
	for {
		rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		for _, c := range id[:12] {
			if c > '9' {
				return id
			}
		}
	}
}

// Store is a directory of records. Its methods are safe for concurrent use as
// long as no two concern the same container.
type Store struct{ dir string }

// Open opens the store in dir and makes it when it is missing. A store of a
// later schema is refused.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "containers"), 0o700); err != nil {
		return nil, fmt.Errorf("open the container store: %w", err)
	}
	name := filepath.Join(dir, "schema.json")
	data, err := os.ReadFile(name)
	if err == nil && len(data) > 0 {
		var v struct{ Schema int }
		if err := json.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("open the container store: %s: %w", name, err)
		}
		if v.Schema > Schema {
			return nil, fmt.Errorf("the containers in %s were written by a later version of Berth (schema %d, this one knows %d): "+
				"upgrade Berth, or delete the machine", dir, v.Schema, Schema)
		}
		return &Store{dir}, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the container store: %w", err)
	}
	if err := writeFile(name, fmt.Appendf(nil, "{\"schema\":%d}\n", Schema), true); err != nil {
		return nil, fmt.Errorf("open the container store: %w", err)
	}
	return &Store{dir}, nil
}

// Dir is where a container keeps its files.
func (s *Store) Dir(id string) string { return filepath.Join(s.dir, "containers", id) }

// Create makes a container's directory.
func (s *Store) Create(id string) error {
	if err := os.Mkdir(s.Dir(id), 0o710); err != nil {
		return fmt.Errorf("create the container's directory: %w", err)
	}
	return nil
}

// Save writes a record. With durable it is on the disk when Save returns;
// otherwise a crash of the machine leaves this or the one before.
func (s *Store) Save(r *Record, durable bool) error {
	r.Schema = Schema
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save container %s: %w", r.Name, err)
	}
	if err := writeFile(filepath.Join(s.Dir(r.ID), "container.json"), data, durable); err != nil {
		return fmt.Errorf("save container %s: %w", r.Name, err)
	}
	return nil
}

func writeFile(name string, data []byte, durable bool) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), name); err != nil || !durable {
		return err
	}
	// The content was synced, but the name still stands for the one before.
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Remove deletes a container's directory. It is no error if there is none.
func (s *Store) Remove(id string) error { return os.RemoveAll(s.Dir(id)) }

// Load reads all records. broken lists the IDs of directories that hold none:
// their containers were never, or no longer, there.
func (s *Store) Load() (records []*Record, broken []string, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "containers"))
	if err != nil {
		return nil, nil, fmt.Errorf("read the container store: %w", err)
	}
	for _, e := range entries {
		if !ident.Hex(e.Name(), 64, 64) {
			continue
		}
		r, err := s.read(e.Name())
		if err != nil {
			broken = append(broken, e.Name())
			continue
		}
		records = append(records, r)
	}
	return records, broken, nil
}

func (s *Store) read(id string) (*Record, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir(id), "container.json"))
	if err != nil {
		return nil, err
	}
	r, err := decode(data)
	if err == nil && r.ID != id {
		err = fmt.Errorf("the record of %s is that of %s", id, r.ID)
	}
	return r, err
}

func decode(data []byte) (*Record, error) {
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if r.ID == "" || r.Config == nil || r.HostConfig == nil {
		return nil, errors.New("incomplete record")
	}
	return r, nil
}
