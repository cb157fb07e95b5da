// Package vhosttest is the other half of a vhost-user back-end, for tests: a
// front-end as QEMU is one, and the split virtqueues of a toy guest driver in a
// memfd. With it a device is tested without a virtual machine, also against a
// guest that breaks the rules. Linux only.
package vhosttest
