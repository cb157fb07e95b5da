//go:build !windows

package dockercontext

const defaultDockerHost = "unix:///var/run/docker.sock"
