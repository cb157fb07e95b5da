// Package version holds the version of the host programs.
package version

import "runtime/debug"

// Version is set by the linker, and empty in programs that the Makefile has not
// built: ask String.
var Version string

// String is Berth's version without a leading "v". A program that the Makefile has
// not built says "dev", with the commit where Go knows it.
func String() string {
	if Version != "" {
		return Version
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
