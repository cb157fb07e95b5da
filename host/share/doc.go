// Package share serves one of the host's folders to the guest as a FUSE
// filesystem, in the form virtiofs carries it: requests and replies as byte
// vectors (vm.ShareServer). It is not a mount on the host and needs no rights
// beyond the user's own.
//
// # Staying inside
//
// Every file the guest knows is a descriptor (O_PATH) that this process opened
// from its parent's descriptor by one name, never following a link. No path is
// ever resolved twice, "..", "/" and magic links are no names, so neither a
// symbolic link nor a race with one leaves the folder. Links are the guest's to
// follow, inside its own tree. The folders named in Options.Hidden do not exist
// for the guest, which cannot move what leads to them either.
//
// A guest may know more files than a process may have open: the descriptors of
// those it has not used for long are closed, and opened again by the same single
// name in the same folder, if that still is the same file.
//
// # Owners and modes
//
// On the host everything belongs to the user who runs Berth. What the guest's
// programs chown and chmod is remembered in the extended attribute
// user.berth.stat as "uid:gid:mode:rdev" (uid and gid decimal, -1 for none; mode
// octal with its type bits; rdev decimal), which the guest can neither see nor
// set as an attribute. A file without it belongs to whoever asks: each user of
// the guest sees its own ids, which is what makes a shared source tree usable by
// all images. Modes that the host's file can carry are set there too, but the
// owner never loses access and set-id bits never reach the host. A chmod on the
// host overrides what the guest remembers. Devices, sockets and FIFOs made by
// the guest are empty regular files on the host.
//
// # Consistency
//
// The guest may cache names and attributes for Validity. Data goes to the host
// with each write; fsync is the host's fsync.
//
// The server is for Linux hosts, where a device feeds it; package ninep is for the
// others.
package share

import "time"

// Validity is how long the guest may use names and attributes unasked, and so
// how late it may see what the host's programs changed.
const Validity = time.Second
