// Package initproc is what a container's first process does before it executes
// the user's program: it reads an order (guest/container/order) from its socket
// and builds the container from the inside, or joins one for a further process.
// The program cmd/berth-exec is this package and nothing else.
//
// Its start is a good part of every "run", so it imports little: no fmt, no os, no
// encoding/json. It decides nothing: paths, flags and filters were worked out and
// checked by guest/container, and a failure is reported there and ends it.
//
// It runs on one thread, the process's first, on which everything that counts is
// per thread (credentials, filter, mount namespace); exec ends the others.
//
// # Order of things
//
// What needs the machine's own /proc comes first, because the container's /proc is
// not to be trusted: time offsets, sysctls (they follow the process's namespaces,
// not the mount). Then the root is assembled by descriptors:
// file systems and bind mounts are made detached (fsmount, open_tree), configured,
// and only then attached (move_mount) to a target that was opened inside the root
// with RESOLVE_IN_ROOT. There is no moment at which a path could be swapped
// between check and use. Masks and read-only paths are mounted the same way. Then
// come pivot_root, credentials and the search for the program; after the start the
// filter and exec.
package initproc
