// Package virtionet is the virtio network device (virtio 1.2, section 5.1) over
// vhost-user, with the far end of its cable in this process: packets go from the
// guest's memory to a vm.OffloadNetwork and back without the hypervisor's work, and
// TCP's segments as long as IPv4 has them, with checksums left out. The hypervisor
// keeps the device's configuration space and, if any, its control queue.
//
// The guest is hostile: a frame is copied out of its memory before it is looked at,
// one that is too long is dropped, and what waits for its receive buffers is capped;
// packets beyond that are lost, as on a wire. The network has to check what is in a
// frame.
//
// Everything but this comment is Linux only.
package virtionet
