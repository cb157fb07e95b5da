// Package oci is the command line of an OCI runtime on top of guest/container,
// with runc's commands and flags, so that what drives runc (containerd's shims,
// the OCI's validation suite) can drive it. berth-guest serves it as
// "berth-guest oci". The engine does not use it.
//
// What runc has and this has not: checkpoint and restore, rootless containers,
// systemd's cgroup driver, AppArmor and SELinux. Their flags are refused, except
// where ignoring them changes nothing (--no-pivot is refused, --no-new-keyring is
// accepted).
//
// Exit codes: the program's own for run and exec (128 and the signal's number for
// one that was killed), 1 for an error.
package oci
