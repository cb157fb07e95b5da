// Package localkeeper is a keeper inside the engine's own process, for running
// the engine where it is not PID 1's child: in tests, and on a developer's Linux
// machine. Containers' processes are children of the engine and nothing outlives
// it.
package localkeeper
