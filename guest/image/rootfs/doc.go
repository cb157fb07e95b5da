// Package rootfs holds containers' root filesystems: an overlay of an image's
// unpacked layers, read-only, under a directory that takes what the container
// writes. It mounts them, measures them, tells what changed and packs that as a
// layer.
//
// What a container wrote is hostile: trees are walked by directory descriptors
// and never through symbolic links.
package rootfs
