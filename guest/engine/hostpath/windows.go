package hostpath

import (
	"path"
	"strings"
)

// A Windows host's paths become paths with slashes, so that one way of resolving
// serves all hosts: C:\Users\me is /c/Users/me. Where a host's shared folders are
// such, Map.Open takes all the forms in which its users write them.

// FromDrive reads a path of Windows that begins with its drive, as C:\Users\me,
// c:/Users/me or \\?\C:\Users\me, and says whether it is one.
func FromDrive(name string) (string, bool) {
	name = strings.TrimPrefix(name, `\\?\`)
	if len(name) < 3 || !isLetter(name[0]) || name[1] != ':' || !isSlash(name[2]) {
		return "", false
	}
	below := path.Clean(strings.ReplaceAll(name[2:], `\`, "/")) // Windows does it before it looks, and ends at the drive
	return strings.TrimSuffix("/"+strings.ToLower(name[:1])+below, "/"), true
}

// Windows reads a path of a Windows host's, as FromDrive or as its Unix shells write
// it, /c/Users/me or //c/Users/me, and says whether it is absolute.
func Windows(name string) (string, bool) {
	if drive, ok := FromDrive(name); ok {
		return drive, true
	}
	if !strings.HasPrefix(name, "/") {
		return "", false
	}
	clean := path.Clean(name) // two slashes are one
	if len(clean) >= 2 && isLetter(clean[1]) && (len(clean) == 2 || clean[2] == '/') {
		clean = "/" + strings.ToLower(clean[1:2]) + clean[2:]
	}
	return clean, true
}

// fromLink reads what a symbolic link of a Windows host's leads to.
func fromLink(target string) string {
	if drive, ok := FromDrive(target); ok {
		return drive
	}
	return strings.ReplaceAll(target, `\`, "/")
}

// ToDrive undoes FromDrive, for messages.
func ToDrive(name string) string {
	if len(name) < 2 || name[0] != '/' || !isLetter(name[1]) || len(name) > 2 && name[2] != '/' {
		return name
	}
	rest := strings.ReplaceAll(name[2:], "/", `\`)
	if rest == "" {
		rest = `\`
	}
	return strings.ToUpper(name[1:2]) + ":" + rest
}

// SplitSpec splits docker's source:destination:modes, in which the source may begin
// with a drive. c:/x:ro stays the volume c: a drive takes a backslash, or a
// destination after the path.
func SplitSpec(spec string) []string {
	parts := strings.Split(spec, ":")
	if len(parts) < 3 || len(parts[0]) != 1 || !isLetter(parts[0][0]) || parts[1] == "" {
		return parts
	}
	if parts[1][0] == '\\' || parts[1][0] == '/' && strings.HasPrefix(parts[2], "/") {
		parts[1] = parts[0] + ":" + parts[1]
		return parts[1:]
	}
	return parts
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func isSlash(c byte) bool { return c == '/' || c == '\\' }
