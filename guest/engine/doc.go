// Package engine is what a container is over time: it creates, starts, watches,
// restarts and removes containers, and remembers them across restarts of itself
// and of the machine. What a container is at one moment belongs to
// guest/container, its root file system to guest/image, its network to
// guest/network; processes and streams outlive a crash of the engine in
// guest/keeper.
//
// # Concurrency
//
// All methods of Engine are safe for concurrent use. Engine.mu guards the tables
// of containers and is never held while anything else is waited for. Each
// container has two locks, taken in this order: op serialises what changes its
// processes (start, the handling of an exit, removal, rename, update), and mu
// guards its fields and is held for moments only. Stopping holds neither while it
// waits for the exit.
//
// # Errors
//
// Errors that a client caused are marked with github.com/containerd/errdefs and
// read as docker's; everything else is internal.
package engine
