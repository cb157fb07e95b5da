// Package job ties processes to this one on Windows: what is added to a Job ends
// with it, and a Job ends at the latest with the process that made it, however that
// happens.
//
// Everything but this comment is Windows only.
package job
