// Package publish makes containers' ports reachable on the host: it asks the host
// for listeners (wire.PortPublishHost) and carries the connections that come back
// (wire.PortPortal) to the containers. What a published port does inside the
// machine is guest/network's business.
package publish
