package machine

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestConfig(t *testing.T) {
	c, err := ParseConfig([]byte("cpus: 3\nmemory: 1.5GiB\ndisk: 10G\nautostart: false\nstart-timeout: 90s\ndns: [192.0.2.1]\n"), "f")
	if err != nil {
		t.Fatal(err)
	}
	if c.CPUs != 3 || c.Memory != 3<<29 || c.Disk != 10<<30 || c.Autostart || time.Duration(c.StartTimeout) != 90*time.Second || c.StopTimeout != DefaultConfig().StopTimeout {
		t.Errorf("%+v", c)
	}
	for _, empty := range []string{"", "# nothing\n", defaultConfig, "---\n"} {
		if c, err := ParseConfig([]byte(empty), "f"); err != nil || c.Memory != DefaultConfig().Memory {
			t.Errorf("%q: %+v, %v", empty, c, err)
		}
	}
}

// TestConfigWindowsLines: an editor of Windows ends lines otherwise, and may begin
// with a mark.
func TestConfigWindowsLines(t *testing.T) {
	c, err := ParseConfig([]byte("\ufeffcpus: 3\r\n# a comment\r\nmemory: 1GiB\r\ndns:\r\n  - 192.0.2.1\r\n"), "f")
	if err != nil || c.CPUs != 3 || c.Memory != 1<<30 || len(c.DNS) != 1 || c.DNS[0] != "192.0.2.1" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := ParseConfig([]byte("cpus: 3\r\nmemroy: 1GiB\r\n"), "f"); err == nil || !strings.Contains(err.Error(), `f:2: unknown key "memroy"`) {
		t.Errorf("%v", err)
	}
}

// TestConfigTemplate: what the comments call defaults are the defaults.
func TestConfigTemplate(t *testing.T) {
	var lines []string
	for _, l := range strings.Split(defaultConfig, "\n") {
		if strings.HasPrefix(l, "#") && !strings.HasPrefix(l, "# ") && !strings.Contains(l, "cpus") {
			lines = append(lines, l[1:])
		}
	}
	c, err := ParseConfig([]byte(strings.Join(lines, "\n")), "f")
	if err != nil {
		t.Fatal(err)
	}
	d := DefaultConfig()
	if c.Memory != d.Memory || c.Disk != d.Disk || c.Autostart != d.Autostart || c.StartTimeout != d.StartTimeout ||
		c.StopTimeout != d.StopTimeout || c.Acceleration != d.Acceleration {
		t.Errorf("the template says %+v, the defaults are %+v", c, d)
	}
}

func TestConfigErrors(t *testing.T) {
	tests := []struct{ body, want string }{
		{"cpus: 2\nmemroy: 1GiB\n", `f:2: unknown key "memroy"`},
		{"cpus: many\n", "f:1: a value of the wrong kind"},
		{"\n\nmemory: much\n", `f:3: "much" is not a size like 2GiB`},
		{"memory: [1]\n", "f:1: "},
		{"start-timeout: soon\n", `f:1: "soon" is not a duration`},
		{"cpus: 2\ncpus: 3\n", `f:2: key "cpus" is there already, in line 1`},
		{"cpus: 0\n", "f:1: cpus: 0 is not between"},
		{"autostart: true\nmemory: 1MiB\n", "f:2: memory: 1MiB is not between 256MiB"},
		{"disk: 1073741825\n", "f:1: disk: 1073741825 is not a multiple"},
		{"disk: 1MiB\n", "f:1: disk: "},
		{"disk-sync: never\n", `f:1: disk-sync: "never" is neither`},
		{"streams: paper\n", `f:1: streams: "paper" is neither`},
		{"acceleration: warp\n", `f:1: acceleration: "warp" is neither`},
		{"dns: [nowhere]\n", `f:1: dns: "nowhere" is not an IP address`},
		{"proxy: {http: proxy}\n", `f:1: proxy: "proxy" is not a URL`},
		{"ca-bundle: roots.pem\n", "f:1: ca-bundle: "},
		{"cpus: [\n", "f:"},
		{"a: b: c\n", "f:1: "},
		{"- x\n", "f:1: "},
		{"cpus: 1\n---\ncpus: 2\n", "f: more than one document"},
		{"start-timeout: 1ms\n", "f:1: start-timeout"},
	}
	for _, tt := range tests {
		_, err := ParseConfig([]byte(tt.body), "f")
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%q:\n got %v\nwant %s", tt.body, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", tt.body, err)
		}
	}
}

func TestSet(t *testing.T) {
	m := testMachine(t, "set")
	if err := m.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kv := range [][2]string{{"cpus", "3"}, {"cpus", "4"}, {"memory", "1GiB"}, {"memory", ""}, {"proxy", "{http: http://p:1}"}} {
		if err := m.Set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	c, err := m.LoadConfig()
	if err != nil || c.CPUs != 4 || c.Memory != DefaultConfig().Memory || c.Proxy.HTTP != "http://p:1" {
		t.Errorf("%+v, %v", c, err)
	}
	before, _ := os.ReadFile(m.ConfigFile)
	if !strings.HasPrefix(string(before), defaultConfig) {
		t.Errorf("the comments are gone:\n%s", before)
	}
	for _, kv := range [][2]string{{"cpus", "0"}, {"nonsense", "1"}, {"cpus", "1\nmemory: 1GiB"}, {"memory", "{"}} {
		if err := m.Set(kv[0], kv[1]); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", kv, err)
		}
	}
	if after, _ := os.ReadFile(m.ConfigFile); string(after) != string(before) {
		t.Errorf("a refused change has changed the file:\n%s", after)
	}
}

func TestSize(t *testing.T) {
	for s, want := range map[string]Size{"0": 0, "17": 17, "1KiB": 1024, "2GiB": 2 << 30, "1.5G": 3 << 29, "1 MB": 1e6, "3T": 3 << 40} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "GiB", "-1", "1XB", "1e99", "NaN", "Inf", "1GiBGiB"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
	for n, want := range map[Size]string{0: "0B", 1 << 30: "1GiB", 3 << 29: "1.5GiB", 5000: "4.9KiB"} {
		if n.String() != want {
			t.Errorf("%d: %s, want %s", int64(n), n, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(defaultConfig))
	f.Add([]byte("cpus: 2\nproxy: {http: x}\nmemory: 1GiB\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseConfig(body, "f")
		if err == nil && c.Validate() != nil {
			t.Errorf("accepted an invalid configuration: %+v", c)
		}
		setKey(body, "cpus", "2")
	})
}
