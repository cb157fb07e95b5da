package network

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// stateVersion is of the file below. A file with a higher one is refused, and
// stays as it is.
const stateVersion = 1

// stateFile is networks.json in Options.StateDir.
type stateFile struct {
	Version  int          `json:"version"`
	Site     netip.Prefix `json:"site,omitzero"` // the /48 that IPv6 subnets are chosen from
	Networks []Network    `json:"networks"`      // the user-defined ones
}

// sandboxFile is what Options.RunDir holds for each container.
type sandboxFile struct {
	ContainerID string       `json:"containerID"`
	NetNS       string       `json:"netns,omitempty"`
	Endpoints   []Endpoint   `json:"endpoints"`
	Ports       []Port       `json:"ports,omitempty"`
	DNS         []netip.Addr `json:"dns,omitempty"`
}

func (o Options) statePath() string { return filepath.Join(o.StateDir, "networks.json") }

func (o Options) sandboxPath(id string) string { return filepath.Join(o.RunDir, id+".json") }

func readState(path string) (stateFile, error) {
	var st stateFile
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stateFile{Version: stateVersion}, nil
	}
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if st.Version > stateVersion {
		return st, fmt.Errorf("%s was written by a newer version (%d, this one knows %d): update berth", path, st.Version, stateVersion)
	}
	return st, nil
}

// readSandboxes reads what an earlier process left. A damaged file is reported
// and skipped: Restore then removes what it described.
func readSandboxes(dir string, damaged func(path string, err error)) ([]sandboxFile, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []sandboxFile
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		var f sandboxFile
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err == nil && f.ContainerID != id {
			err = errors.New("it names another container")
		}
		if err != nil {
			damaged(path, err)
			continue
		}
		all = append(all, f)
	}
	return all, err
}

// writeWhole replaces a file at once. With durable, it survives a power cut.
func writeWhole(path string, v any, durable bool) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil && durable {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// newID makes an identifier as docker's are: 64 hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// predefinedID is the same on every machine, so that nothing need be written at
// the first boot.
func predefinedID(name string) string {
	sum := sha256.Sum256([]byte("berth network " + name))
	return hex.EncodeToString(sum[:])
}

// newSite chooses a /48 for unique local IPv6 addresses (RFC 4193).
func newSite() netip.Prefix {
	b := [16]byte{0xfd}
	rand.Read(b[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}
