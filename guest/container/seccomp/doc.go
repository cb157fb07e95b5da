// Package seccomp compiles the OCI's system-call filters to the kernel's: one
// classic BPF program for all the architectures that a filter names.
//
// # Meaning
//
// The meaning is libseccomp's, as runc uses it. A rule without conditions wins
// over rules with conditions for the same system call; of several the first wins.
// The conditions of one rule must all hold, unless two of them look at the same
// argument: then each stands for itself. A rule whose action is the default action
// is void. System calls this package has no number for are skipped. The machine's
// own architecture is always part of a filter; another one than those named kills
// the process. On 32-bit architectures only the low half of an argument counts,
// and so it does everywhere for socket and socketpair, whose arguments the kernel
// itself cuts down: a rule of "not equal" could otherwise be passed by setting
// bits that nobody looks at.
//
// A system call that is newer than every one the filter names gets ENOSYS instead
// of the default action, unless that lets it pass: C libraries fall back to an
// older call on ENOSYS, but take EPERM for an answer.
//
// # Shape
//
// System calls with one outcome and neighbouring numbers form a range; ranges are
// found by binary search, so that any call costs about eight comparisons. The
// kernel additionally remembers the calls that are always allowed.
package seccomp
