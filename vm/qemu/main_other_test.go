//go:build !linux

package qemu

func standIn(string) {}

func daemon(string) {}
