// Package volumes offers the volumes in the Docker API's words, and knows which
// containers have them.
package volumes
