// Package binfmt has the kernel run programs for another architecture by an
// interpreter (binfmt_misc; the kernel's Documentation/admin-guide/binfmt-misc.rst).
//
// The root file system has qemu-user for one architecture other than its own. It is
// registered when the first container or build step needs it, by Need. Where the
// host offers Rosetta, the boot registers that: of two interpreters for the same
// programs, Rosetta is the one that runs them.
//
// What is registered stays so until the machine stops; the kernel holds the open
// interpreter, so that it is there for containers, which do not see its file.
package binfmt
