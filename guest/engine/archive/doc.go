// Package archive copies files into and out of a container's root as tar streams.
// The root is given as an open directory; nothing that lies in it or in a stream,
// no link and no name, leads out of it: every path is resolved by the kernel with
// RESOLVE_IN_ROOT, and files are made relative to directories that are held open.
package archive
