// Package autostart has a program started when the user logs in, by the
// convention of each system: a launch agent on macOS, a value of the Run key on
// Windows, a desktop entry of XDG's autostart elsewhere. Each belongs to one user
// and needs no rights of an administrator; nothing runs before the next login.
package autostart

import (
	"encoding/xml"
	"path/filepath"
	"strings"
)

// Entry is a program to start.
type Entry struct {
	// Name is the entry's own, of letters, digits and dashes.
	Name    string
	Title   string // for the user
	Program string // absolute path
	Args    []string
}

// Enable makes e start at the next login. It replaces an older one of that name.
func Enable(e Entry) error { return enable(e) }

// Disable makes the entry of that name start no more; it may not exist.
func Disable(name string) error { return disable(name) }

// Enabled reports whether an entry of that name starts at login.
func Enabled(name string) bool { return enabled(name) }

// Where is the entry's place, for the user to look at.
func Where(name string) string { return where(name) }

// labelPrefix keeps launch agents' names apart from others'.
const labelPrefix = "com.github.berthvm."

// launchAgent is the property list of e, see launchd.plist(5): a program of the
// graphical session, that stays ended when it ends.
func launchAgent(e Entry) []byte {
	var b strings.Builder
	text := func(s string) string {
		var t strings.Builder
		_ = xml.EscapeText(&t, []byte(s)) // a Builder takes all
		return t.String()
	}
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>` + text(labelPrefix+e.Name) + `</string>
	<key>ProgramArguments</key>
	<array>
`)
	for _, arg := range append([]string{e.Program}, e.Args...) {
		b.WriteString("\t\t<string>" + text(arg) + "</string>\n")
	}
	b.WriteString(`	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>ProcessType</key>
	<string>Interactive</string>
	<key>LimitLoadToSessionType</key>
	<string>Aqua</string>
</dict>
</plist>
`)
	return []byte(b.String())
}

// launchAgentFile is where launchd looks for it.
func launchAgentFile(home, name string) string {
	return filepath.Join(home, "Library", "LaunchAgents", labelPrefix+name+".plist")
}

// desktopEntry is e as freedesktop.org's Desktop Entry Specification has it. A
// session ignores it once the program is gone (TryExec).
func desktopEntry(e Entry) []byte {
	exec := make([]string, 0, 1+len(e.Args))
	for _, arg := range append([]string{e.Program}, e.Args...) {
		exec = append(exec, desktopQuote(arg))
	}
	return []byte("[Desktop Entry]\nType=Application\nName=" + desktopText(e.Title) + "\nTryExec=" + desktopText(e.Program) +
		"\nExec=" + desktopText(strings.Join(exec, " ")) + "\nTerminal=false\nX-GNOME-Autostart-enabled=true\n")
}

// desktopQuote quotes one argument of an Exec line.
func desktopQuote(arg string) string {
	arg = strings.ReplaceAll(arg, "%", "%%")
	if arg != "" && !strings.ContainsAny(arg, " \t\n\"'\\><~|&;$*?#()`") {
		return arg
	}
	return `"` + strings.NewReplacer("\\", `\\`, `"`, `\"`, "`", "\\`", "$", `\$`).Replace(arg) + `"`
}

// desktopText escapes a value, of whatever key.
func desktopText(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(s)
}

// desktopFile is where sessions look for it.
func desktopFile(getenv func(string) string, name string) string {
	config := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(config) { // the specification says to ignore others
		config = filepath.Join(getenv("HOME"), ".config")
	}
	return filepath.Join(config, "autostart", name+".desktop")
}

// desktopOn reports whether an entry is one that starts: desktops' settings turn
// it off by lines of it.
func desktopOn(body string) bool {
	for line := range strings.Lines(body) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key, value = strings.TrimSpace(key), strings.TrimSpace(value); {
		case key == "Hidden" && value == "true", key == "X-GNOME-Autostart-enabled" && value == "false":
			return false
		}
	}
	return true
}

// runValue is the command line of e for the Run key of Windows' registry.
func runValue(e Entry) string {
	words := make([]string, 0, 1+len(e.Args))
	for _, arg := range append([]string{e.Program}, e.Args...) {
		words = append(words, windowsQuote(arg))
	}
	return strings.Join(words, " ")
}

// windowsQuote quotes as CommandLineToArgvW reads it.
func windowsQuote(arg string) string {
	if arg != "" && !strings.ContainsAny(arg, " \t\"") {
		return arg
	}
	var b strings.Builder
	b.WriteByte('"')
	slashes := 0
	for _, r := range arg {
		switch r {
		case '\\':
			slashes++
			continue
		case '"':
			b.WriteString(strings.Repeat(`\`, 2*slashes+1))
		default:
			b.WriteString(strings.Repeat(`\`, slashes))
		}
		slashes = 0
		b.WriteRune(r)
	}
	b.WriteString(strings.Repeat(`\`, 2*slashes))
	b.WriteByte('"')
	return b.String()
}
