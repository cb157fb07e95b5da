// Package version holds the version of the host programs.
package version

import "runtime/debug"

// version is set by the linker:
// -ldflags "-X github.com/berthvm/berth/host/version.version=1.2.3".
var version string

// String is Berth's version without a leading "v". A program that was not built
// by the Makefile says "dev", with the commit where Go knows it.
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}
