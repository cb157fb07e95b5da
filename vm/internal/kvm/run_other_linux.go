//go:build linux && !amd64 && !arm64

package kvm

import "errors"

func runGuest() error { return errors.New("this architecture has no probe") }
