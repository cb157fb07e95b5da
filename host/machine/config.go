package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is a machine's configuration, as the user writes it in its YAML file.
type Config struct {
	CPUs         int      `yaml:"cpus" json:"cpus"`
	Memory       Size     `yaml:"memory" json:"memory"`
	Disk         Size     `yaml:"disk" json:"disk"`
	Autostart    bool     `yaml:"autostart" json:"autostart"`
	Acceleration string   `yaml:"acceleration" json:"acceleration"`
	Streams      string   `yaml:"streams" json:"streams"`
	DiskSync     string   `yaml:"disk-sync" json:"diskSync"`
	Rosetta      bool     `yaml:"rosetta" json:"rosetta"`
	Nested       bool     `yaml:"nested" json:"nested"`
	StartTimeout Duration `yaml:"start-timeout" json:"startTimeout"`
	StopTimeout  Duration `yaml:"stop-timeout" json:"stopTimeout"`
	DNS          []string `yaml:"dns,omitempty" json:"dns,omitempty"`
	Proxy        Proxy    `yaml:"proxy,omitempty" json:"proxy,omitzero"`
	CABundle     string   `yaml:"ca-bundle,omitempty" json:"caBundle,omitempty"`
	Shares       Shares   `yaml:"shares" json:"shares"`
}

// Proxy overrides the host's proxy settings, which the guest gets otherwise.
type Proxy struct {
	HTTP  string `yaml:"http,omitempty" json:"http,omitempty"`
	HTTPS string `yaml:"https,omitempty" json:"https,omitempty"`
	No    string `yaml:"no,omitempty" json:"no,omitempty"`
}

// Size is a number of bytes, written with a unit: "2GiB".
type Size int64

// Duration is written as Go does: "90s", "5m".
type Duration time.Duration

// The values that Acceleration takes.
const (
	AccelerationAuto = "auto" // the best that works
	AccelerationNone = "none" // pure emulation, the same on every host
)

// The values that Streams takes.
const (
	StreamsAuto   = "auto"   // what the hypervisor has
	StreamsSerial = "serial" // QEMU's serial port and folders by 9P, as on macOS and Windows
)

// The values that DiskSync takes: what a machine's flush of its disk means on macOS.
const (
	DiskSyncFull  = "full"  // it is on the medium
	DiskSyncFsync = "fsync" // faster; it survives a crash of programs, not a power cut
)

// defaultConfig is what a new machine's file says. Every value is the default,
// so that a later Berth can choose better ones.
const defaultConfig = `# The configuration of a Berth machine; it is read when the machine starts.
# Every line that is commented out shows the default.

#cpus: 2                 # half of the host's, at least 1
#memory: 2GiB
#disk: 64GiB             # grows when raised, never shrinks; takes only what is used
#autostart: true         # docker's commands start the machine
#acceleration: auto      # or none: pure emulation
#streams: auto           # or serial: between host and machine as QEMU does it on macOS and Windows; slower
#disk-sync: full         # or fsync on macOS: faster, and what was written last does not survive a power cut of the host
#rosetta: true           # on Apple silicon: programs for amd64 run by Rosetta, if it is installed
#nested: false           # macOS 15 on M3 and newer: machines within the machine
#start-timeout: 5m
#stop-timeout: 1m
#dns: [192.0.2.53]       # instead of the host's resolvers
#proxy: {http: "http://proxy:3128", https: "http://proxy:3128", no: "localhost"}
#ca-bundle: ` + rootsExample + `
#shares: ` + defaultSharesText + `# folders that containers may mount; {path: ~/data, read-only: true} for one that is only to be read;
                         # native: true on macOS: by the system's own virtiofs, faster, and no owners are remembered
`

// DefaultConfig is the configuration of a machine whose file says nothing.
func DefaultConfig() Config {
	return Config{
		CPUs:         max(1, runtime.NumCPU()/2),
		Memory:       2 << 30,
		Disk:         64 << 30,
		Autostart:    true,
		Acceleration: AccelerationAuto,
		Streams:      StreamsAuto,
		DiskSync:     DiskSyncFull,
		Rosetta:      true,
		StartTimeout: Duration(5 * time.Minute),
		StopTimeout:  Duration(time.Minute),
		Shares:       defaultShares(),
	}
}

// LoadConfig reads the machine's configuration. A file that is not there is an
// empty one.
func (m Machine) LoadConfig() (Config, error) {
	body, err := os.ReadFile(m.ConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return DefaultConfig(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("cannot read the configuration: %w", err)
	}
	return ParseConfig(body, m.ConfigFile)
}

// ParseConfig reads a configuration strictly: a key that does not exist is an
// error. Errors name the file and the line.
func ParseConfig(body []byte, file string) (Config, error) {
	c := DefaultConfig()
	dec := yaml.NewDecoder(bytes.NewReader(body))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s:%s", file, readableYAML(err))
	}
	var more any
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s: more than one document", file)
	}
	if key, err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%s:%d: %s: %w", file, lineOf(body, key), key, err)
	}
	return c, nil
}

// Validate reports the first thing wrong with c, purely.
func (c Config) Validate() error {
	if key, err := c.check(); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// check names the key that is wrong, with the reason.
func (c Config) check() (key string, err error) {
	switch {
	case c.CPUs < 1 || c.CPUs > 64:
		return "cpus", fmt.Errorf("%d is not between 1 and 64", c.CPUs)
	case c.Memory < 256<<20 || c.Memory > 1<<40:
		return "memory", fmt.Errorf("%s is not between 256MiB and 1TiB", c.Memory)
	case c.Disk < 1<<30 || c.Disk > 16<<40:
		return "disk", fmt.Errorf("%s is not between 1GiB and 16TiB", c.Disk)
	case c.Disk%4096 != 0:
		return "disk", fmt.Errorf("%d is not a multiple of 4096 bytes", c.Disk)
	case c.Acceleration != AccelerationAuto && c.Acceleration != AccelerationNone:
		return "acceleration", fmt.Errorf("%q is neither auto nor none", c.Acceleration)
	case c.Streams != StreamsAuto && c.Streams != StreamsSerial:
		return "streams", fmt.Errorf("%q is neither auto nor serial", c.Streams)
	case c.DiskSync != DiskSyncFull && c.DiskSync != DiskSyncFsync:
		return "disk-sync", fmt.Errorf("%q is neither full nor fsync", c.DiskSync)
	case c.StartTimeout < Duration(time.Second):
		return "start-timeout", errors.New("less than a second")
	case c.StopTimeout < Duration(time.Second):
		return "stop-timeout", errors.New("less than a second")
	case c.CABundle != "" && !filepath.IsAbs(c.CABundle):
		return "ca-bundle", fmt.Errorf("%q is not an absolute path", c.CABundle)
	}
	for _, addr := range c.DNS {
		if net.ParseIP(addr) == nil {
			return "dns", fmt.Errorf("%q is not an IP address", addr)
		}
	}
	for _, proxy := range []string{c.Proxy.HTTP, c.Proxy.HTTPS} {
		if u, err := url.Parse(proxy); proxy != "" && (err != nil || u.Scheme == "" || u.Host == "") {
			return "proxy", fmt.Errorf("%q is not a URL like http://proxy:3128", proxy)
		}
	}
	return "", nil
}

// lineOf finds the line of a top-level key; 1 when the file does not have it.
func lineOf(body []byte, key string) int {
	var doc yaml.Node
	if err := yaml.Unmarshal(body, &doc); err == nil && len(doc.Content) == 1 {
		for i := 0; i+1 < len(doc.Content[0].Content); i += 2 {
			if doc.Content[0].Content[i].Value == key {
				return doc.Content[0].Content[i].Line
			}
		}
	}
	return 1
}

var (
	yamlLine    = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)
	yamlUnknown = regexp.MustCompile(`^field (.+) not found in type .+$`)
	yamlType    = regexp.MustCompile("^cannot unmarshal !!(\\w+) (?:(`.*`) )?into .+$")
	yamlTwice   = regexp.MustCompile(`^mapping key (".+") already defined at line (\d+)$`)
)

// readableYAML turns the library's words into "LINE: what is wrong".
func readableYAML(err error) string {
	msg := err.Error()
	var te *yaml.TypeError
	if errors.As(err, &te) && len(te.Errors) > 0 {
		msg = te.Errors[0]
	}
	line := "1"
	if found := yamlLine.FindStringSubmatch(msg); found != nil {
		line, msg = found[1], msg[len(found[0]):]
	}
	msg = strings.TrimPrefix(msg, "yaml: ")
	msg = yamlUnknown.ReplaceAllString(msg, `unknown key "$1"`)
	msg = yamlTwice.ReplaceAllString(msg, `key $1 is there already, in line $2`)
	if found := yamlType.FindStringSubmatch(msg); found != nil {
		msg = strings.TrimSpace("a value of the wrong kind: " + found[2])
	}
	return line + ": " + msg
}

// Set changes one key of the machine's configuration file; the rest of the
// file, comments included, stays. The result must be a valid configuration. An
// empty value removes the key.
func (m Machine) Set(key, value string) error {
	body, err := os.ReadFile(m.ConfigFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	if _, err := ParseConfig(body, m.ConfigFile); err != nil {
		return err
	}
	next, err := setKey(body, key, value)
	if err != nil {
		return err
	}
	if _, err := ParseConfig(next, key+"="+value); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.ConfigFile), 0o700); err != nil {
		return fmt.Errorf("cannot write the configuration: %w", err)
	}
	return WriteFile(m.ConfigFile, next, 0o600)
}

// setKey edits lines rather than a parsed document, which would lose blank
// lines and the comments of an otherwise empty file. A key whose value spans
// lines is refused.
func setKey(body []byte, key, value string) ([]byte, error) {
	var parsed any
	if err := yaml.Unmarshal([]byte(value), &parsed); err != nil || strings.ContainsAny(value, "\n\r") {
		return nil, fmt.Errorf("%s: %q is not a YAML value", key, value)
	}
	line := key + ": " + value
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	for i, l := range lines {
		if !strings.HasPrefix(l, key+":") {
			continue
		}
		if i+1 < len(lines) && strings.HasPrefix(lines[i+1], " ") {
			return nil, fmt.Errorf("%s: its value spans several lines: edit the file", key)
		}
		if value == "" {
			lines = append(lines[:i], lines[i+1:]...)
		} else {
			lines[i] = line
		}
		return []byte(strings.Join(lines, "\n") + "\n"), nil
	}
	if value != "" {
		lines = append(lines, line)
	}
	return []byte(strings.TrimLeft(strings.Join(lines, "\n")+"\n", "\n")), nil
}

var units = []struct {
	suffix string
	bytes  int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}, {"", 1},
}

// ParseSize reads "2GiB", "512M" or a plain number of bytes.
func ParseSize(s string) (Size, error) {
	for _, u := range units {
		digits, found := strings.CutSuffix(s, u.suffix)
		if !found {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || !(n >= 0) || n*float64(u.bytes) > 1<<60 {
			break
		}
		return Size(n * float64(u.bytes)), nil
	}
	return 0, fmt.Errorf("%q is not a size like 2GiB", s)
}

// String writes the size in its largest unit, with a decimal where it needs one.
func (s Size) String() string {
	for _, u := range units[:4] {
		switch {
		case int64(s) >= u.bytes && int64(s)%u.bytes == 0:
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.suffix
		case int64(s) >= u.bytes:
			return strconv.FormatFloat(float64(s)/float64(u.bytes), 'f', 1, 64) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// UnmarshalYAML reads a Size.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseSize(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %q is not a size like 2GiB", n.Line, n.Value)
	}
	*s = v
	return nil
}

// MarshalYAML writes a Size as the user does.
func (s Size) MarshalYAML() (any, error) { return s.String(), nil }

// UnmarshalYAML reads a Duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %q is not a duration like 90s or 5m", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes a Duration as the user does.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }
