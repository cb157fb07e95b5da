// Package build is the image builder: BuildKit, in this process, on the same
// content, layers and names as guest/image. What a build makes is an image at
// once; nothing is sent or stored twice. The steps of a build run in containers of
// guest/container, see guest/build/step.
//
// A Builder opens BuildKit with its first use: an engine that never builds pays
// for the program's size only. It serves BuildKit's own API (docker's /grpc) and
// sessions (/session), and answers the engine's API for clients that speak neither
// (see Solve).
//
// # What is on the disk
//
// Layers and blobs are the image store's, held by BuildKit's leases. Beside them,
// below Options.Root, are BuildKit's databases. Steps do not wait for the disk: what
// they make, and what the cache knows of it, is written without flushes, which survives
// the end of the process and no power cut. A Builder that finds a cache after a boot it
// was not closed before forgets it as a whole instead of trusting it. Images are flushed
// before they get their names, and pulled layers before they count as unpacked.
//
// # Trust
//
// A Dockerfile, a context, a repository and a registry are hostile. They reach the
// machine through BuildKit's parsers and the containers of steps only; git runs in
// one too, see guest/build/git. Clients are the
// engine's, who may do all anyway; still nothing that asks for more than a
// container gets (the machine's network, insecure steps) is done without the
// entitlement that the client must spell out.
package build
