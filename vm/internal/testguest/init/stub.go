//go:build !linux

package main

func main() { panic("this program is a Linux machine's PID 1") }
