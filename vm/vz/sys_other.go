//go:build !unix

package vz

import (
	"errors"
	"net"
	"os"
)

// datagramPair is never called: Probe fails here.
func datagramPair() (*net.UnixConn, *os.File, error) { return nil, nil, errors.ErrUnsupported }
