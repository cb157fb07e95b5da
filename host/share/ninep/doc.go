// Package ninep serves one of the host's folders to the guest by 9P2000.L over a
// stream, for hosts whose hypervisor has no device that package share could feed.
// It behaves like package share, whose documentation says how, with the differences
// below; owners and modes are remembered by the same code (package owner).
//
// # Staying inside
//
// Each folder that the guest knows is an os.Root, opened from its parent's by one
// name. What was opened must be what was looked at before, by its identity, or the
// guest is told ESTALE: so no link is ever followed, and none, and no race with one,
// leads out of the folder or to what is hidden. Renames and links go from one open
// folder to another.
//
// # Differences
//
// The guest caches nothing but what a program has mapped. Locks hold within the
// guest only. A folder without a remembered owner looks open to all of the guest's
// users. There are no extended attributes, and set-id bits are forgotten: the
// library that knows the protocol cannot do the one and drops the other. A file
// that was removed while it is open can be read and written, but not truncated.
// Windows has no modes: all files look executable, and what the guest remembers is
// kept in an alternate data stream of the file.
package ninep
