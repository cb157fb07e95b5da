// Package order is what the engine and a container's first process say to each
// other, over one SOCK_SEQPACKET socket whose messages keep their borders.
//
// The engine sends one Order (Encode), cut into parts of at most ChunkSize bytes,
// each behind one byte that says More or Last; the descriptors that the Order names
// come with the first part. The process answers with Replies, the engine's next
// words are single bytes:
//
//	Order                      →
//	                           ←  Hooks (only when Order.ParentHooks)
//	Proceed                    →
//	                           ←  Console, with a descriptor (only when Order.NewConsole)
//	Proceed                    →
//	                           ←  Ready
//	Proceed (means: start)     →
//	                           ←  Going
//	                           ←  end of file: the program runs
//
// Without Going, the end of file means that the process was killed.
// Failed, with a text, may come instead of any answer, and ends it. End of file
// from the engine ends the process, up to Ready for a detached one and up to the
// start for all others. A detached process takes its start from a connection to
// the listening socket it was given, which then stands for the first.
//
// The encoding is made for speed of the start: no reflection, no field names,
// strings that point into the received bytes. Both ends are built from the same
// source, and Version guards against a mixture. It is not an archive format.
package order
