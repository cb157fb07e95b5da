// Package keeper lets PID 1 hold what must outlive the engine: for each
// container process its record, its open files (pipes, terminals) and how it
// ended. An engine that crashed is restarted, dials the keeper and finds its
// containers running.
//
// The Server runs in PID 1 and needs only the standard library and x/sys; the
// Client runs in the engine. The store is in memory and lives as long as PID 1.
//
// # A container's start
//
// The engine makes pipes or a pty and Puts them with a record. It clones the
// container's first process with CLONE_PARENT, so that PID 1 is its parent, and
// Adopts it: PID 1 notes pid and start time and only then answers. Then the
// engine releases the child. Whatever dies at whatever moment, no exit is lost:
// a process that ended before its Adopt is found among the latest unclaimed
// exits, and every later one is recorded in the entry until Delete or the next
// Adopt for its key, besides being sent to each connected client.
//
// A client that connects gets every exit from that moment on, so an engine
// dials first, then Lists, and misses nothing.
//
// # The wire
//
// The transport is a Unix SOCK_SEQPACKET socket; a message is one packet, and
// files travel with it as SCM_RIGHTS. Integers are little-endian, a string is
// its length as four bytes and its bytes. Every message starts with one byte
// for the kind and four for the call's number, which the reply repeats.
//
//	call                  body                        files
//	1 put                 key, record                 to keep, at most MaxFiles
//	2 get                 key
//	3 list                key to start after
//	4 delete              key
//	5 adopt               key, pid (4)                a pidfd
//
//	from the server       body                        files
//	128 reply             error code (1), text, more (1), entries   those of get's entry
//	129 exit (number 0)   key, process
//
//	entry                 key, record, state (1), and if that is not 0 a process
//	process               pid (4), start time (8), exited (1), wait status (4), at (8)
//
// A start time is in clock ticks since boot, as in /proc/PID/stat; "at" is in
// nanoseconds of the Unix epoch. A list that does not fit one packet is
// continued: more is 1, and the next call starts after the last key.
// A malformed packet ends the connection.
package keeper
