package images

import (
	"slices"
	"strings"
)

// expand replaces $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} by what env says,
// as a Dockerfile does: not in single quotes and not after a backslash. What env
// lacks is empty.
func expand(s string, env []string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var out strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'':
			quoted = !quoted
			out.WriteByte(c)
		case c == '\\' && !quoted && i+1 < len(s):
			if s[i+1] != '$' {
				out.WriteByte(c)
			}
			i++
			out.WriteByte(s[i])
		case c == '$' && !quoted:
			value, n := variable(s[i+1:], env)
			out.WriteString(value)
			i += n
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// variable reads what follows a dollar and returns its value and length.
func variable(s string, env []string) (value string, n int) {
	if strings.HasPrefix(s, "{") {
		body, _, ok := strings.Cut(s[1:], "}")
		if !ok {
			return "$", 0
		}
		end := nameLen(body)
		value := lookup(body[:end], env)
		switch word := body[end:]; {
		case strings.HasPrefix(word, ":-") && value == "":
			value = word[2:]
		case strings.HasPrefix(word, ":+") && value != "":
			value = word[2:]
		}
		return value, len(body) + 2
	}
	end := nameLen(s)
	if end == 0 {
		return "$", 0
	}
	return lookup(s[:end], env), end
}

// nameLen is how long the variable's name at the start of s is.
func nameLen(s string) int {
	n := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	})
	if n < 0 {
		return len(s)
	}
	return n
}

func lookup(name string, env []string) string {
	for _, kv := range slices.Backward(env) {
		if key, value, _ := strings.Cut(kv, "="); key == name {
			return value
		}
	}
	return ""
}
