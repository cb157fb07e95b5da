// Package oci is the command line of an OCI runtime, compatible with runc's, on
// top of guest/container. berth-guest serves it as "berth-guest oci".
package oci
