package hostpath

import (
	"slices"
	"strings"
	"testing"
)

func TestWindows(t *testing.T) {
	for name, want := range map[string]string{
		`C:\Users\me\src`:      "/c/Users/me/src",
		`c:/Users/me/src`:      "/c/Users/me/src",
		`C:\Users/me\.\x\..`:   "/c/Users/me",
		`\\?\C:\Users\me`:      "/c/Users/me",
		`C:\`:                  "/c",
		`C:\..\..`:             "/c",
		`/c/Users/me`:          "/c/Users/me",
		`/C/Users/me`:          "/c/Users/me",
		`//c/Users/me`:         "/c/Users/me",
		`/c`:                   "/c",
		`/var/run/docker.sock`: "/var/run/docker.sock",
		`//cc/x`:               "/cc/x",
		`C:src`:                "",
		`C:`:                   "",
		`src`:                  "",
		`\src`:                 "",
		`\\server\share`:       "",
		`1:\x`:                 "",
		``:                     "",
	} {
		got, ok := Windows(name)
		if got != want || ok != (want != "") {
			t.Errorf("Windows(%q) = %q, %t, want %q", name, got, ok, want)
		}
	}
	for name, want := range map[string]string{"/c/Users/me": `C:\Users\me`, "/c": `C:\`, "/cc": "/cc", "/": "/", "": ""} {
		if got := ToDrive(name); got != want {
			t.Errorf("ToDrive(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestSplitSpec(t *testing.T) {
	for spec, want := range map[string][]string{
		`C:\Users\me\src:/src`:    {`C:\Users\me\src`, "/src"},
		`C:\Users\me\src:/src:ro`: {`C:\Users\me\src`, "/src", "ro"},
		`c:/Users/me:/src`:        {"c:/Users/me", "/src"},
		`/c/Users/me:/src`:        {"/c/Users/me", "/src"},
		`c:/data`:                 {"c", "/data"},
		`c:/data:ro`:              {"c", "/data", "ro"},
		`vol:/data`:               {"vol", "/data"},
		`/data`:                   {"/data"},
		`a:`:                      {"a", ""},
		`a::b`:                    {"a", "", "b"},
		``:                        {""},
	} {
		if got := SplitSpec(spec); !slices.Equal(got, want) {
			t.Errorf("SplitSpec(%q) = %q, want %q", spec, got, want)
		}
	}
}

func FuzzWindows(f *testing.F) {
	f.Add(`C:\Users\me:/src:ro`)
	f.Add(`//c/x`)
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := Windows(name)
		if ok && (!strings.HasPrefix(got, "/") || strings.Contains(got, "/../")) {
			t.Errorf("Windows(%q) = %q", name, got)
		}
		if again, ok2 := Windows(got); ok && (!ok2 || again != got) {
			t.Errorf("Windows(%q) = %q, and of that %q", name, got, again)
		}
		if strings.Join(SplitSpec(name), ":") != name {
			t.Errorf("SplitSpec(%q) = %q", name, SplitSpec(name))
		}
	})
}
