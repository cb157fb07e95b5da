//go:build !linux

// Command berth-exec runs on Linux only.
package main

func main() { panic("berth-exec runs on Linux only") }
