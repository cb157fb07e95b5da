// Package dockerapi serves the Docker Engine API over HTTP: routes, versions,
// parameters, JSON shapes, streams and the mapping of errors to status codes. It
// holds no state: what it says is the engine's.
//
// The versions MinVersion to MaxVersion are served. A path without a version is
// the newest. Where an older version has another shape that clients depend on,
// the answer is brought into it here.
package dockerapi
