//go:build darwin && cgo

package main

import "github.com/berthvm/berth/images"

// kernelOf is the kernel in the form that Virtualization.framework wants; QEMU takes
// it, too.
func kernelOf(image *images.Image) string {
	if image.BzImage != "" {
		return image.BzImage
	}
	return image.Kernel
}
