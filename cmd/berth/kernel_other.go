//go:build !darwin || !cgo

package main

import "github.com/berthvm/berth/images"

// kernelOf is the kernel in the form that boots fastest.
func kernelOf(image *images.Image) string { return image.Kernel }
