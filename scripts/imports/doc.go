// Package imports holds no code: its test enforces which of this module's
// packages may import which.
package imports
