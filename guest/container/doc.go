// Package container runs one container: its namespaces, root file system,
// cgroup, credentials and system-call filter, as an OCI runtime specification
// describes them. It knows no images, networks, names or restart policies: what
// a container is over time belongs to guest/engine.
//
// # Life of a container
//
//	Create ──► Created ──Start──► Running ◄──Pause/Resume──► Paused
//	                │                │
//	                └────────────────┴──► Stopped ──Delete──► gone
//
// Create clones the container's first process, guest/container/initproc (the
// program cmd/berth-exec), straight into its cgroup and new namespaces, and
// sends it its orders over a socket. The process builds the container from the
// inside, reports, and waits; Start lets it execute the user's program. From
// then on nothing of this package runs in the container, and nothing of it needs
// to run outside: a container outlives the process that made it, and Load finds
// it again from its directory in StateDir.
//
// # Joining namespaces
//
// Namespaces that exist already are joined between clone and exec, where the
// child is single-threaded: see guest/container/fork. That is what lets a Go
// program join a user namespace with no helper in C.
//
// # Trust
//
// The container is hostile. Its root file system is only ever resolved inside
// itself (openat2 with RESOLVE_IN_ROOT), mount targets are held by file
// descriptor, every descriptor but the wanted ones is close-on-exec before the
// first process starts, and the working directory is checked to lie inside. The
// image of berth-exec cannot be written through /proc/PID/exe (CVE-2019-5736):
// it lies on a read-only file system, and where it does not, a sealed copy in
// memory is executed instead. AppArmor and SELinux labels are not supported: a
// specification that asks for one is refused.
//
// A container that was given CAP_SYS_PTRACE and has no user namespace of its own
// can trace a process that Exec is starting in it, as with every runtime.
package container
