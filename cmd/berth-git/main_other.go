//go:build !linux

// Command berth-git runs on Linux only.
package main

func main() { panic("berth-git runs on Linux only") }
