package main

// onResize does nothing: a console has no signal for it, and looking again and
// again would be polling.
func onResize(func()) (stop func()) { return func() {} }
