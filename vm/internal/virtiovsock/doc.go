// Package virtiovsock is the host's end of a virtual machine's vsock: a
// virtio vsock device (virtio 1.2, section 5.10) that runs in this process as a
// vhost-user back-end. Host programs reach the guest's AF_VSOCK ports through
// Dial and serve the guest's connections through Listen; nothing is visible to
// other users of the host, as the kernel's own vhost-vsock would be.
//
// The guest is hostile: every descriptor, index and packet header is copied once
// and then checked. A broken packet resets its connection, a broken ring resets
// all of them; memory, connections, backlogs and queued replies are capped.
//
// Addresses follow AF_VSOCK: the host is CID 2, the guest has the CID it was
// given, ports are 32 bits. Only stream sockets exist.
//
// # Lifetime
//
// One Device serves one machine. The hypervisor's vhost-user front-end connects
// to a listening unix socket that belongs to the caller; the accepted connection
// is handed to Serve, which runs until the front-end hangs up. Once that has
// happened QEMU does not come back: the process that holds the Device must live
// as long as the virtual machine.
//
// A guest that pauses keeps its connections. A guest that restarts loses them;
// it is noticed when the new driver starts, or earlier by Reset, which the
// owner calls when the hypervisor reports the reset.
//
// Everything but this comment is Linux only.
package virtiovsock
