// Package stdio carries the standard streams of one process: what it prints to
// its log and to everyone attached, what they type to its standard input.
//
// A pipe with a log is drained so that a crash of the engine loses nothing: its
// bytes are copied with tee(2), logged, and only then consumed. A crash between
// the last two logs one batch twice. A terminal cannot be copied that way: a
// crash can lose what was just read from it.
package stdio
