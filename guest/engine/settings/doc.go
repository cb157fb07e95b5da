// Package settings works out what a container's configuration means before
// anything is made of it: the image's share in it, docker's defaults, and what must
// be refused. It looks at nothing but the request.
package settings
