package autostart

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

var sample = Entry{Name: "berth-tray", Title: "Berth", Program: "/opt/my berth/berth-tray", Args: []string{"--machine", "a&b"}}

// TestLaunchAgent parses it as XML and reads the arguments back.
func TestLaunchAgent(t *testing.T) {
	body := string(launchAgent(sample))
	d := xml.NewDecoder(strings.NewReader(body))
	var texts []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, body)
		}
		if c, ok := token.(xml.CharData); ok && strings.TrimSpace(string(c)) != "" {
			texts = append(texts, string(c))
		}
	}
	want := []string{"Label", "com.github.berthvm.berth-tray", "ProgramArguments", "/opt/my berth/berth-tray", "--machine", "a&b",
		"RunAtLoad", "ProcessType", "Interactive", "LimitLoadToSessionType", "Aqua"}
	if !slices.Equal(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
	if got := launchAgentFile("/Users/me", "berth-tray"); got != filepath.FromSlash("/Users/me/Library/LaunchAgents/com.github.berthvm.berth-tray.plist") {
		t.Error(got)
	}
}

func TestDesktopEntry(t *testing.T) {
	const want = `[Desktop Entry]
Type=Application
Name=Berth
TryExec=/opt/my berth/berth-tray
Exec="/opt/my berth/berth-tray" --machine "a&b"
Terminal=false
X-GNOME-Autostart-enabled=true
`
	if got := string(desktopEntry(sample)); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	for arg, want := range map[string]string{
		"plain": "plain", "": `""`, "100%": "100%%", `a"b`: `"a\"b"`, "$x": `"\$x"`, `a\b`: `"a\\b"`, "`id`": "\"\\`id\\`\"",
	} {
		if got := desktopQuote(arg); got != want {
			t.Errorf("%q: %s, want %s", arg, got, want)
		}
	}
	for body, want := range map[string]bool{
		"[Desktop Entry]\nExec=x\n":                            true,
		"[Desktop Entry]\nHidden=true\n":                       false,
		"[Desktop Entry]\nX-GNOME-Autostart-enabled = false\n": false,
	} {
		if desktopOn(body) != want {
			t.Errorf("%q: want %t", body, want)
		}
	}
}

func TestDesktopFile(t *testing.T) {
	for _, test := range []struct{ config, want string }{
		{"", "/home/me/.config/autostart/x.desktop"},
		{"relative", "/home/me/.config/autostart/x.desktop"},
		{"/cfg", "/cfg/autostart/x.desktop"},
	} {
		if runtime.GOOS == "windows" {
			t.Skip("the paths are of other systems")
		}
		getenv := func(key string) string {
			return map[string]string{"HOME": "/home/me", "XDG_CONFIG_HOME": test.config}[key]
		}
		if got := desktopFile(getenv, "x"); got != test.want {
			t.Errorf("%q: %s, want %s", test.config, got, test.want)
		}
	}
}

func TestRunValue(t *testing.T) {
	e := Entry{Program: `C:\Program Files\berth\berth-tray.exe`, Args: []string{"--home", `D:\my data\`, `a"b`, `c:\plain\`, ""}}
	const want = `"C:\Program Files\berth\berth-tray.exe" --home "D:\my data\\" "a\"b" c:\plain\ ""`
	if got := runValue(e); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestLogin goes through the files of this system.
func TestLogin(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("would change the registry")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	if Enabled("berth-tray") {
		t.Error("enabled in an empty home")
	}
	if err := Disable("berth-tray"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := Enable(sample); err != nil {
			t.Fatal(err)
		}
	}
	if !Enabled("berth-tray") {
		t.Error("not enabled")
	}
	if _, err := os.Stat(Where("berth-tray")); err != nil {
		t.Error(err)
	}
	if err := Disable("berth-tray"); err != nil || Enabled("berth-tray") {
		t.Errorf("still enabled: %v", err)
	}
}
