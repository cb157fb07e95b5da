// Package mountspec reads the mounts that a user asks for, in all the ways in
// which the Docker API takes them. It looks at nothing but the request.
package mountspec
