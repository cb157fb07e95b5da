package filter

import (
	"strconv"
	"strings"
	"testing"
	"time"

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

func TestBool(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                            "true",
		`{"d":["1"]}`:                   "true",
		`{"d":["false"]}`:               "false",
		`{"d":{"0":true,"false":true}}`: "false",
		`{"d":[]}`:                      "invalid filter 'd'",
		`{"d":{}}`:                      "invalid filter 'd'",
		`{"d":["yes"]}`:                 "invalid filter 'd=[yes]'",
		`{"d":["true","0"]}`:            "invalid filter 'd=[0 true]'",
	} {
		set, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := set.Bool("d", true)
		if text := strconv.FormatBool(got); err == nil && text != want || err != nil && err.Error() != want {
			t.Errorf("%s: %v, %v; want %s", in, got, err, want)
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
	for labels, want := range map[string]bool{"": true, "x": true, "x y": false, "x y z": false} {
		have := map[string]string{}
		for l := range strings.FieldsSeq(labels) {
			have[l] = ""
		}
		if got := (Set{"label!": {"x": true, "y": true}}).Prunes(have); got != want {
			t.Errorf("prune all but those with x and y, of %q: %v", labels, got)
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

func TestUntil(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                       {},
		"10m":                    now.Add(-10 * time.Minute),
		"0":                      time.Unix(0, 0),
		"1700000000":             time.Unix(1700000000, 0),
		"1700000000.5":           time.Unix(1700000000, 5e8),
		"1700000000.0000000019":  time.Unix(1700000000, 1),
		"2024-01-02":             time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC),
		"2024-01-02T03":          time.Date(2024, 1, 2, 3, 0, 0, 0, time.UTC),
		"2024-01-02T03:04":       time.Date(2024, 1, 2, 3, 4, 0, 0, time.UTC),
		"2024-01-02T03:04:05.6":  time.Date(2024, 1, 2, 3, 4, 5, 6e8, time.UTC),
		"2024-01-02T03:04+02:00": time.Date(2024, 1, 2, 1, 4, 0, 0, time.UTC),
		"2024-01-02Z":            time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC),
	} {
		f := Set{}
		if in != "" {
			f.Add("until", in)
		}
		if got, err := f.Until(now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"yesterday", "1.x", "1e3", "2024-13-01", "1." + strings.Repeat("1", 21), "99999999999999999999"} {
		if got, err := (Set{"until": {in: true}}).Until(now); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := (Set{"until": {"1h": true, "2h": true}}).Until(now); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two: %v", err)
	}
}

// FuzzUntil: a moment is the one that is written, or refused.
func FuzzUntil(f *testing.F) {
	for _, v := range []string{"10m", "1700000000.5", "2024-01-02", "2024-01-02T03:04:05.6Z", "-1", "1e300", "NaN", "17000000005"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		m, err := Set{"until": {v: true}}.Until(time.Now())
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v is not the client's fault", v, err)
		}
		if secs, perr := strconv.ParseInt(v, 10, 60); perr == nil && v != "-0" && v != "+0" && (err != nil || m.Unix() != secs) {
			t.Errorf("%q is %v, %v", v, m, err)
		}
	})
}
