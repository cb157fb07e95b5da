// Package enginetest runs the engine without root, kernel features or images: its
// runtime's programs are Go functions, its images are values and its networks do
// nothing. What it keeps outlives an engine, so that a crash can be played.
package enginetest
