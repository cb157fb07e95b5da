package seccomp

// A Filter is a compiled filter. It is immutable.
type Filter struct {
	flags uint32
	insns []byte
}
