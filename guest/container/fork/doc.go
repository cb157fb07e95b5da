// Package fork starts a program the way a container needs it, which the standard
// library cannot: with clone3 straight into a cgroup and new namespaces, as a
// sibling (CLONE_PARENT) instead of a child, and with existing namespaces joined
// between clone and exec.
//
// # Why between clone and exec
//
// The kernel lets only a single-threaded process join a user or time namespace,
// and only one that shares its fs_struct with nobody join a mount namespace. A Go
// program has several threads before its first line runs. The usual ways out are
// a constructor in C (runc), or a helper program. But the child of a clone is
// single-threaded until it execs: so this package forks by itself and makes the
// few system calls there. That code has no Go runtime under it: it is one nosplit
// function that calls nothing but raw system calls, touches no heap but what was
// prepared before, and runs with all signals at their defaults
// (CLONE_CLEAR_SIGHAND). The parent's memory is shared and the parent's thread
// waits (CLONE_VFORK|CLONE_VM), as in the syscall package, because copying an
// engine's page tables would cost more than all the rest. There are two
// exceptions that copy: a new user namespace, since the child has to wait until
// its parent has written the mappings, and a joined time namespace, which the
// kernel refuses to who shares memory.
//
// A PID namespace is joined by the parent's thread before the clone: setns only
// sets the namespace of children to come.
//
// CLONE_PARENT with clone3 is the other reason: the kernel demands exit_signal 0
// then, and the syscall package always passes SIGCHLD.
package fork
