// Package kvm finds out whether the kernel's KVM runs a guest. That /dev/kvm opens
// says little: where virtualization is nested or emulated a guest can hang for
// ever, beyond the reach of any timeout in the same process, or be interpreted, more
// slowly than a hypervisor would emulate it. So a child process runs the smallest
// guest there is, and can be killed.
//
// It works the same for every driver on Linux. That KVM runs a few instructions does
// not say that a hypervisor gets along with it; that is the driver's to try.
//
// Everything but this comment is Linux only.
package kvm
