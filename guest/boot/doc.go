// Package boot is what PID 1 does in the guest: it brings the machine up from
// the initramfs to a running engine, keeps it running, and takes it down.
// cmd/berth-init is this package and a main function.
//
// # Coming up
//
// The kernel starts the program from the initramfs; it stays the same process
// for the machine's life. Phases run at once where they can:
//
//	modules ──┬─ root ─────┬─ mounts ────────────┐
//	          ├─ hello ────┼──────────┬─ network │
//	          └────────────┴─ data disk ─────────┴─ engine, core modules
//
// "hello" dials the host and gets the Welcome, which is all of the guest's
// configuration (see guest/wire); "root" mounts the erofs image from the disk
// with the serial berth-root and makes it /; "data disk" formats the disk with
// the serial berth-data if it is blank, checks it if it was not unmounted, grows
// the file system if the disk grew, and mounts it on /var/lib/berth. Modules
// that only containers need ("core modules") load while the engine starts. Each
// phase is timed and reported to the host as a wire.Phase.
//
// What cannot be mended (no root, a host that does not answer or refuses, a
// damaged data disk) is one line on the console and one failed phase, and the
// machine powers off.
//
// # The engine
//
// PID 1 writes the Welcome to /run/berth/welcome.json (0600, in a directory
// 0700), serves guest/keeper on /run/berth/keeper.sock and starts
// /usr/bin/berth-guest in the cgroup /engine, its output going to the console.
// Descriptor 3, also named by BERTH_READY_FD, is a pipe: the engine writes a byte
// when it serves requests, which ends the phase "engine".
// When the engine ends it is started again, at once the first time and with a
// growing delay if it keeps ending.
//
// # Going down
//
// An order of the host (wire.OpPowerOff, wire.OpReboot), the power button, or
// the end of the hello stream (the host's daemon died, and has not said before that
// it will save the machine) take the machine down:
// SIGTERM to the engine, which stops the containers; then SIGKILL to what is
// left, unmounting, and reboot(2). Every step has a deadline.
package boot
