// Package builds is the engine's API on guest/build: builds of clients that do not
// speak BuildKit's own protocol, the events of builds, and the build cache as
// docker shows it.
//
// There are two such protocols, which differ in what comes back. One tells what
// happens as BuildKit's own messages, for clients that hold a session besides; the
// other is the text of the classic builder, which scripts and libraries read.
package builds
