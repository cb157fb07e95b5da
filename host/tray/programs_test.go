package tray

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func surroundings(goos, terminal string, have ...string) Surroundings {
	return Surroundings{GOOS: goos,
		Getenv: func(key string) string { return map[string]string{"TERMINAL": terminal}[key] },
		LookPath: func(name string) (string, error) {
			if slices.Contains(have, name) {
				return "/usr/bin/" + name, nil
			}
			return "", errors.New("not found")
		}}
}

func TestTerminal(t *testing.T) {
	wrapped := []string{"sh", "-c", `"$@"; printf '\n[ended: press Enter to close]'; read -r _`, "sh", "/opt/my berth/berth", "ssh"}
	for _, test := range []struct {
		name string
		s    Surroundings
		want []string
	}{
		{"Debian", surroundings("linux", "", "xterm", "x-terminal-emulator"), append([]string{"x-terminal-emulator", "-e"}, wrapped...)},
		{"GNOME", surroundings("linux", "", "gnome-terminal"), append([]string{"gnome-terminal", "--"}, wrapped...)},
		{"the user's own", surroundings("linux", "st", "st", "xterm"), append([]string{"st", "-e"}, wrapped...)},
		{"the user's is gone", surroundings("linux", "st", "xterm"), append([]string{"xterm", "-e"}, wrapped...)},
		{"none", surroundings("linux", ""), nil},
		{"Windows", surroundings("windows", ""), []string{"/opt/my berth/berth", "ssh"}},
		{"macOS", surroundings("darwin", ""), []string{"osascript", "-e", `tell application "Terminal"`,
			"-e", `do script "'/opt/my berth/berth' 'ssh'"`, "-e", "activate", "-e", "end tell"}},
	} {
		if got := test.s.Terminal("/opt/my berth/berth", "ssh"); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestOpen(t *testing.T) {
	for goos, want := range map[string][]string{
		"linux":   {"xdg-open", "http://localhost:80"},
		"darwin":  {"open", "http://localhost:80"},
		"windows": {"rundll32", "url.dll,FileProtocolHandler", "http://localhost:80"},
	} {
		if got := surroundings(goos, "").Open("http://localhost:80"); !slices.Equal(got, want) {
			t.Errorf("%s: %q", goos, got)
		}
	}
	if got := surroundings("windows", "").Open(`C:\Users\me`); !slices.Equal(got, []string{"explorer", `C:\Users\me`}) {
		t.Errorf("%q", got)
	}
}

// TestShellLine asks a real shell what it makes of the line.
func TestShellLine(t *testing.T) {
	words := []string{"a b", "it's", `$HOME "x" \`, "`id`", "", "*"}
	out, err := exec.Command("sh", "-c", `for w in `+shellLine(words)+`; do printf '%s\n' "$w"; done`).Output()
	if err != nil {
		t.Skip("no sh: ", err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); !slices.Equal(got, words) {
		t.Errorf("%q, want %q", got, words)
	}
}
