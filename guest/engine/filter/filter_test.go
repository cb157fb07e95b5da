package filter

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in  string
		bad bool
		has string
	}{
		{"", false, ""},
		{`{"label":{"a=b":true}}`, false, "a=b"},
		{`{"label":["a=b"]}`, false, "a=b"},
		{`{}`, false, ""},
		{`[]`, true, ""},
		{`{"label":7}`, true, ""},
		{`{`, true, ""},
	} {
		set, err := Parse(c.in)
		if (err != nil) != c.bad {
			t.Errorf("Parse(%q): %v", c.in, err)
		}
		if c.bad && !errdefs.IsInvalidArgument(err) {
			t.Errorf("Parse(%q): %v is not an invalid argument", c.in, err)
		}
		if c.has != "" && !set["label"][c.has] {
			t.Errorf("Parse(%q) = %v, lacks %q", c.in, set, c.has)
		}
	}
}

func TestMatch(t *testing.T) {
	set, err := Parse(`{"name":["^web"],"id":["abc"],"label":["a","b=1"],"status":["running"]}`)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ got, want bool }{
		"pattern":       {set.Pattern("name", "web-1"), true},
		"pattern not":   {set.Pattern("name", "my-web"), false},
		"prefix":        {set.Prefix("id", "abcdef"), true},
		"prefix not":    {set.Prefix("id", "xabc"), false},
		"labels":        {set.Labels("label", map[string]string{"a": "", "b": "1"}), true},
		"labels value":  {set.Labels("label", map[string]string{"a": "", "b": "2"}), false},
		"labels key":    {set.Labels("label", map[string]string{"b": "1"}), false},
		"exact":         {set.Exact("status", "running"), true},
		"exact not":     {set.Exact("status", "exited"), false},
		"absent":        {set.Exact("volume", "x"), true},
		"bad regex":     {Set{"name": {"(": true}}.Pattern("name", "x"), false},
		"nil set label": {Set(nil).Labels("label", nil), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", what, c.got, c.want)
		}
	}
	if err := set.Check("name", "id", "label"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an unknown name passed: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"label":{"a=b":true}}`)
	f.Add(`{"label":["a"]}`)
	f.Add(`{"dangling":["true","false"]}`)
	f.Fuzz(func(t *testing.T, in string) {
		set, err := Parse(in)
		if err != nil {
			return
		}
		for name := range set {
			set.Pattern(name, "x")
			set.Labels(name, map[string]string{"x": "y"})
			_, _ = set.Bool(name, false)
		}
	})
}
