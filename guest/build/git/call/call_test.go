package call

import (
	"reflect"
	"slices"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for _, c := range []Call{
		{}, {Dir: "/d"}, {Args: []string{""}}, {Env: []string{"A="}}, {Dir: "/d", Args: []string{"init", "", "1"}, Env: []string{"A=b", ""}},
	} {
		got, err := Decode(c.Encode())
		if err != nil || got.Dir != c.Dir || !slices.Equal(got.Args, c.Args) || !slices.Equal(got.Env, c.Env) {
			t.Errorf("%+v became %+v, %v", c, got, err)
		}
	}
	for _, bad := range []string{"", "0", "x\x00", "-1\x00", "1\x00d", "2\x00d\x00a", "99999999999999999999\x00d"} {
		if c, err := Decode([]byte(bad)); err == nil && bad != "0" {
			t.Errorf("%q became %+v", bad, c)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Call{Dir: "/d", Args: []string{"fetch"}, Env: []string{"A=b"}}.Encode())
	f.Add([]byte("1\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		if again, err := Decode(c.Encode()); err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("%+v became %+v, %v", c, again, err)
		}
	})
}
