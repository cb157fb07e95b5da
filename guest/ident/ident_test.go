package ident

import (
	"regexp"
	"testing"
)

// FuzzPatterns holds the loops to the expressions that they stand for.
func FuzzPatterns(f *testing.F) {
	name := regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9_.-]{1,7}\z`)
	one := regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,7}\z`)
	plain := regexp.MustCompile(`\A[a-zA-Z0-9_.-]*\z`)
	hex := regexp.MustCompile(`\A[a-f0-9]{4,8}\z`)
	for _, s := range []string{"", "a", "ab", "-a", "a-_.Z9", "a\n", "ab\x00", "é", "aé", "0123", "012", "012345678", "ABCD", "abcdefgh", "@[`{/:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []struct {
			what      string
			got, want bool
		}{
			{"Name of 2 to 8", Name(s, 2, 8), name.MatchString(s)},
			{"Name of 1 to 8", Name(s, 1, 8), one.MatchString(s)},
			{"Name of 0 to 8", Name(s, 0, 8), one.MatchString(s)},
			{"Plain", Plain(s, "_.-"), plain.MatchString(s)},
			{"Hex of 4 to 8", Hex(s, 4, 8), hex.MatchString(s)},
		} {
			if c.got != c.want {
				t.Errorf("%s: %q: %v, want %v", c.what, s, c.got, c.want)
			}
		}
	})
}
