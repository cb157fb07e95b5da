//go:build !windows

package main

import "github.com/berthvm/berth/host/forward"

var listenHere = forward.Listen
