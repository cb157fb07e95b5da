// Package hostlink is the way between the guest's programs and the host: vsock,
// vsock in frames (guest/wire/framed), or PID 1's sockets where there is a serial
// port only (guest/wire/muxed). The kernel's command line tells which, and nobody
// but this package and PID 1 has to care.
package hostlink
