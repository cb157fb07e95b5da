package tray

import (
	"strings"
)

// Surroundings are what programs are looked for with.
type Surroundings struct {
	GOOS     string
	Getenv   func(string) string
	LookPath func(string) (string, error)
}

// terminals are Linux' terminals with what stands before the command.
var terminals = [][]string{
	{"x-terminal-emulator", "-e"}, {"gnome-terminal", "--"}, {"konsole", "-e"}, {"xfce4-terminal", "-x"}, {"kitty"}, {"alacritty", "-e"}, {"foot"}, {"xterm", "-e"},
}

// Terminal is the command that opens a window with a terminal that runs argv, and
// that waits for a key before it closes; nil if there is none. On Windows it is
// argv itself: a new console comes with the process.
func (s Surroundings) Terminal(argv ...string) []string {
	switch s.GOOS {
	case "windows":
		return argv
	case "darwin":
		script := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(shellLine(argv))
		return []string{"osascript", "-e", `tell application "Terminal"`, "-e", `do script "` + script + `"`, "-e", "activate", "-e", "end tell"}
	}
	const pause = `"$@"; printf '\n[ended: press Enter to close]'; read -r _`
	inner := append([]string{"sh", "-c", pause, "sh"}, argv...)
	candidates := terminals
	if t := s.Getenv("TERMINAL"); t != "" {
		candidates = append([][]string{{t, "-e"}}, terminals...)
	}
	for _, t := range candidates {
		if _, err := s.LookPath(t[0]); err == nil {
			return append(append([]string(nil), t...), inner...)
		}
	}
	return nil
}

// Open is the command that shows a URL or a folder with the user's program for it.
func (s Surroundings) Open(what string) []string {
	switch {
	case s.GOOS == "windows" && strings.Contains(what, "://"):
		return []string{"rundll32", "url.dll,FileProtocolHandler", what}
	case s.GOOS == "windows":
		return []string{"explorer", what}
	case s.GOOS == "darwin":
		return []string{"open", what}
	}
	return []string{"xdg-open", what}
}

// shellLine quotes a command for a POSIX shell.
func shellLine(argv []string) string {
	quoted := make([]string, len(argv))
	for i, a := range argv {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}
