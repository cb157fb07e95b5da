package main

import (
	"context"
	"net"

	"github.com/berthvm/berth/host/forward"
)

// held are connections that are nobody's.
var held = make(chan net.Conn, 100)

// listenHere is for Wine, which hangs on the very first connection to a pipe with one
// instance.
func listenHere(address string) (net.Listener, error) {
	l, err := forward.Listen(address)
	if err == nil {
		go func() {
			if c, err := forward.Dial(context.Background(), address); err == nil {
				held <- c
			}
		}()
	}
	return l, err
}
