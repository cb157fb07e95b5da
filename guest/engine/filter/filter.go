// Package filter reads and applies the filters that Docker API lists take in
// their query: a JSON object of names, each with a set of values. Values of one
// name are alternatives, names must all match. Sets are read-only once parsed and
// may be used from several goroutines.
package filter

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxSize is the largest filter taken, in bytes. Clients send a few dozen.
const maxSize = 1 << 16

// Set is a parsed filter. The zero value matches everything.
type Set map[string]map[string]bool

// Parse reads the filters parameter of a request. It takes both forms clients
// send, {"label":{"a":true}} and the older {"label":["a"]}. Errors are
// errdefs.ErrInvalidArgument.
func Parse(s string) (Set, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > maxSize {
		return nil, invalid("invalid filter: too long")
	}
	set := Set{}
	if json.Unmarshal([]byte(s), &set) == nil {
		return set, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(s), &lists); err != nil {
		return nil, invalid("invalid filter: %v", err)
	}
	set = Set{}
	for name, values := range lists {
		set[name] = map[string]bool{}
		for _, v := range values {
			set.Add(name, v)
		}
	}
	return set, nil
}

// Add adds one value to a name.
func (s Set) Add(name, value string) {
	if s[name] == nil {
		s[name] = map[string]bool{}
	}
	s[name][value] = true
}

// Check refuses names that are not among allowed.
func (s Set) Check(allowed ...string) error {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !slices.Contains(allowed, name) {
			return invalid("invalid filter '%s'", name)
		}
	}
	return nil
}

// Has says whether the filter holds any value for name.
func (s Set) Has(name string) bool { return len(s[name]) > 0 }

// Values returns the values of name, sorted.
func (s Set) Values(name string) []string { return slices.Sorted(maps.Keys(s[name])) }

// Exact matches when name has no values, or value is one of them.
func (s Set) Exact(name, value string) bool { return !s.Has(name) || s[name][value] }

// Prefix matches when name has no values, or value starts with one of them.
func (s Set) Prefix(name, value string) bool {
	if !s.Has(name) {
		return true
	}
	for want := range s[name] {
		if strings.HasPrefix(value, want) {
			return true
		}
	}
	return false
}

// Pattern matches when name has no values, or one of them is value or, as a
// regular expression, occurs in it.
func (s Set) Pattern(name, value string) bool {
	if s.Exact(name, value) {
		return true
	}
	for want := range s[name] {
		if re, err := regexp.Compile(want); err == nil && re.MatchString(value) {
			return true
		}
	}
	return false
}

// Labels matches when labels hold every value of name, which are "key" or
// "key=value".
func (s Set) Labels(name string, labels map[string]string) bool {
	for want := range s[name] {
		key, value, both := strings.Cut(want, "=")
		got, ok := labels[key]
		if !ok || both && got != value {
			return false
		}
	}
	return true
}

// Prunes matches as a prune's filters do: labels hold every value of "label", and
// not every one of "label!".
func (s Set) Prunes(labels map[string]string) bool {
	return s.Labels("label", labels) && !(s.Has("label!") && s.Labels("label!", labels))
}

// Bool returns the truth value of name, or unset when it is not there. To be there
// without a value is an error, as is another or more than one.
func (s Set) Bool(name string, unset bool) (bool, error) {
	switch values, ok := s[name]; {
	case !ok:
		return unset, nil
	case len(values) == 0:
		return false, invalid("invalid filter '%s'", name)
	}
	yes := s[name]["1"] || s[name]["true"]
	no := s[name]["0"] || s[name]["false"]
	if yes == no {
		return false, invalid("invalid filter '%s=%s'", name, s.Values(name))
	}
	return yes, nil
}
