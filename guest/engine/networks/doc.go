// Package networks offers the machine's networks in the Docker API's words.
package networks
