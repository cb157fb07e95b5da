// Package runspec turns what a client of the Docker API asks for into an OCI
// runtime specification, with docker's defaults: capabilities, masked paths,
// devices, mounts and limits. It is pure but for reading /etc/passwd and
// /etc/group of the container's root file system.
package runspec
