// Package proctable lists processes as ps does, from /proc.
package proctable
