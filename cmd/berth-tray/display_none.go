//go:build darwin && !cgo

package main

import (
	"context"
	"errors"
)

// display says why there is none: macOS' library takes cgo.
func display(context.Context, func(context.Context, screen) error) error {
	return errors.New("this berth-tray was built without cgo, which the icon takes on a Mac: install Berth's universal package, or build it there with \"make build\"")
}
