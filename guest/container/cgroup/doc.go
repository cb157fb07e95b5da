// Package cgroup keeps a container's control group: version 2 of the kernel's
// interface, and no other.
//
// Paths are from the hierarchy's root, with a leading slash ("/berth/ID"). Sizes
// are in bytes, times in microseconds unless a name says otherwise. A Group holds
// no descriptor and needs no closing; its methods are safe for concurrent use.
//
// # Limits
//
// Limits come as the OCI's LinuxResources, whose fields were named for version 1.
// What version 2 has no counterpart for is ignored, as runc does: kernel and
// kernelTCP memory, swappiness, disableOOMKiller, leaf weights, the network
// controllers. Real-time scheduling is refused, because its absence would be
// noticed late. Memory reservation becomes memory.low, swap (which the OCI counts
// together with memory) memory.swap.max without the memory, CPU shares a weight by
// runc's formula, under which 1024 shares are the weight 100. Everything else, such
// as memory.high, can be named by its file's name in "unified".
//
// # Devices
//
// Version 2 filters devices by a small eBPF program at the group. We write the
// program ourselves (device_linux.go): it is thirty instructions, is shared by all
// groups with the same rules, and needs no library that first probes the kernel.
package cgroup
