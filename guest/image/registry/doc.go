// Package registry speaks to image registries for the image store: it makes
// containerd resolvers whose transport retries what may pass (resets, 429, 5xx),
// gives up on what stands still, and knows which hosts may be asked without TLS.
// Errors say what docker's do and are marked with github.com/containerd/errdefs.
//
// A registry is hostile: it never learns credentials meant for another host, and
// no wait on it is unbounded.
package registry
