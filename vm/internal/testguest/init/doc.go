// Init is the suite's guest program as PID 1 of a real machine. It loads the
// modules in /modules in the order of their names, mounts what it needs, and
// runs testguest over AF_VSOCK. Beyond testguest's orders it knows
//
//	disk SERIAL read         the first line of the disk with that serial
//	disk SERIAL write TEXT   write a line to its start, and flush
//	disk SERIAL discard      discard all of it
//	net                      bring eth0 up, send a broadcast frame with text
//	                         "ping", answer with the text of the next frame
//	share TAG NAME           mount a shared folder and read a file in it
//	memory MIB               touch so much memory, and free it
//	cmdline                  the kernel's command line
//	cpus                     the number of CPUs
//
// Everything but this comment is Linux only.
package main
