// Package volume keeps named directories that outlive containers: docker's local
// volumes. It does not know who uses them but by the holders of mounts.
package volume
