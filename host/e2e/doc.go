// Package e2e holds the end-to-end suite: the programs of bin/ as a user has
// them, a real VM, a real registry on the host's loopback, and both docker
// clients, the built-in one and the stock one.
//
// The tests run with BERTH_VM=1 (`make test-e2e`); with BERTH_FULL=1 the long
// ones run too. One machine is booted for all tests; those that break a
// machine make their own. It runs on Linux hosts.
package e2e
