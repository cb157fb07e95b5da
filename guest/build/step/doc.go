// Package step runs the steps of a build, each in a container of guest/container
// with what a container of the engine's has: namespaces, cgroup, capabilities,
// system-call filter, masked paths, and a place on docker's default bridge.
//
// What differs is what a build needs: the root is the snapshot that the step
// changes, mounts come from other snapshots, nothing is kept afterwards, and the
// process is a child of this one. A step ends with the call that runs it. One that
// outlives a crash of this process is killed by the next Executor.
package step
