package oci

// Main runs the command line args (without the program's name) and returns the
// exit code.
func Main(args []string) int { return 1 }
