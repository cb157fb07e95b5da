// Package images offers the image store in the Docker API's words: its types, its
// filters, its progress and its events.
package images
