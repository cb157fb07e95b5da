// Package ident tells what is a name or an identifier. What is one is said by a loop
// and not by a regular expression, which the engine would hold in memory, some of
// them hundreds of kilobytes, for as long as it runs.
package ident

import "strings"

// Plain reports whether s is made of ASCII letters, digits and the bytes of more.
func Plain(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return true
}

// Name reports whether s, of least to most bytes, begins with an ASCII letter or
// digit and goes on with such and "_.-".
func Name(s string, least, most int) bool {
	return s != "" && least <= len(s) && len(s) <= most && Plain(s[:1], "") && Plain(s[1:], "_.-")
}

// Hex reports whether s is made of least to most digits of lower-case hexadecimal.
func Hex(s string, least, most int) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return least <= len(s) && len(s) <= most
}
