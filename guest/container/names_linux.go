package container

import (
	"maps"
	"slices"
)

// MountOptions lists the options of mounts that this package knows, apart from
// those of each file system.
func MountOptions() []string {
	names := []string{"bind", "rbind", "defaults", "remount", "tmpcopyup", "idmap", "ridmap"}
	for name := range maps.Keys(mountOptions) {
		names = append(names, name, "r"+name)
	}
	for name := range maps.Keys(propagations) {
		names = append(names, name, "r"+name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Capabilities lists the names of the capabilities that this package knows.
func Capabilities() []string { return slices.Sorted(maps.Keys(capBits)) }
