//go:build linux && !amd64 && !arm64

package kvm

import "errors"

// Code is empty: there is no guest for this architecture.
var Code []byte

func runOneInstruction() error { return errors.New("this architecture has no probe") }
