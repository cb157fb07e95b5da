// Package hostpath finds the files that paths of the host mean in the guest,
// where the host's folders are mounted. Everything but what reads paths of Windows
// is Linux only.
//
// A bind mount's source is always a path of the host, never one of the machine.
// It is resolved as the host would: name by name, symbolic links included, whose
// absolute targets are paths of the host too. Each name is opened from its
// parent's descriptor and never through a link, so whoever changes the folder
// meanwhile, a container of the guest included, can make the resolution end in
// another file of the shared folders or fail, but not leave them.
package hostpath
