// Package vhostuser is the transport under the devices that this process
// provides to a virtual machine: a vhost-user back-end (the protocol QEMU
// documents in docs/interop/vhost-user.rst) with virtio 1.x split virtqueues.
// It knows nothing of any device; vm/internal/virtiovsock sits on it.
//
// # Shape
//
// Serve speaks the protocol with one front-end over one unix socket. A device is
// a Spec (features, queues, configuration space) and three callbacks (Device).
// The device moves buffers through Queue: Begin, then Pop, Chain.Read,
// Chain.Write, Push any number of times, then End. Between Begin and End the
// queue belongs to the caller; the front-end's wish to stop the queue or to
// change the memory table waits for End, so a batch is short and never blocks on
// anything but memory.
//
// # Trust
//
// The guest is hostile and shares its memory while we read it. So each
// descriptor and index is copied once and checked afterwards, no slice of guest
// memory is ever handed out, a chain is at most as long as its queue, and one
// batch sees at most as many chains as the queue has. A ring that breaks the
// rules is dead until the guest resets the device. The front-end is believed no
// further than it must: file descriptors have to be what the message says, and
// guest memory has to be a memfd sealed against shrinking, because a page that
// vanishes under a mapping kills the process.
//
// # Not here
//
// Packed rings, live migration (dirty logging, in-flight buffers), IOMMU and
// polling without kicks are not offered. Little-endian hosts only.
//
// Everything but this comment is Linux only.
package vhostuser
