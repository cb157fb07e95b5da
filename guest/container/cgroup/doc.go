// Package cgroup keeps a container's control group: version 2 of the kernel's
// interface, and no other. Limits come as the OCI's LinuxResources, whose fields
// were named for version 1; the package doc of each conversion says what it does.
//
// Paths are from the hierarchy's root, with a leading slash ("/berth/ID"). Sizes
// are in bytes, times in microseconds unless a name says otherwise. Functions are
// safe for concurrent use on different groups.
package cgroup
