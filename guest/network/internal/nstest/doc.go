// Package nstest runs a package's tests as root of a network and mount namespace
// of their own, so that they cannot touch the machine.
package nstest
