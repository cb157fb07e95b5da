// Package seccomp compiles the OCI's system-call filters to the kernel's: one
// classic BPF program for all the architectures a filter names.
package seccomp
