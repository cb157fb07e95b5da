package image

import "fmt"

// failure is an error with docker's words, of one of errdefs' kinds.
type failure struct {
	text string
	kind error
	err  error // what fmt.Errorf wrapped, or nil
}

// fail returns an error of a kind whose text does not name the kind. The format
// is fmt.Errorf's.
func fail(kind error, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &failure{text: err.Error(), kind: kind, err: err}
}

func (f *failure) Error() string { return f.text }

// Unwrap makes both the kind and the cause known to errors.Is.
func (f *failure) Unwrap() []error { return []error{f.kind, f.err} }
