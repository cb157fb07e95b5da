// Package monitor tames the Go runtime's monitor thread, which looks after the
// other threads of a busy program every 20 µs. On a machine of one slow processor
// each look is an interrupt and two task switches: it took a fifth of the
// processor while a container was started.
//
// The runtime has no setting for it, so the kernel is told to be late: a thread's
// timer slack is how much later than asked its sleeps may end. The monitor's tasks
// bear that. It hands the processor of a goroutine that blocks in the kernel to
// others, preempts after 10 ms, and stops altogether in an idle program.
package monitor
