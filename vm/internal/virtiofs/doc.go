// Package virtiofs is the virtio file system device (virtio 1.2, section 5.11)
// over vhost-user: it carries FUSE requests between the guest's driver and a
// vm.ShareServer. It knows nothing of FUSE but the length in a request's header.
//
// Requests run concurrently, at most maxInFlight at a time and with at most
// maxMemory of buffers; what is beyond waits in the guest's ring. A request is
// copied out of the guest's memory before it is looked at, so that the guest
// cannot change it afterwards.
//
// Everything but this comment is Linux only.
package virtiofs
