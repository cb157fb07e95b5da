// Package heap makes the memory of long-running programs follow their work: by itself
// Go keeps part of what a burst has used for as long as the program lives.
//
// The runtime's collections tell that there was work, so nothing polls.
package heap
