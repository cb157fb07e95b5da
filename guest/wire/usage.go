package wire

import "time"

// Usage is what the machine has used: the answer of the control port to
// GET /v1/usage.
type Usage struct {
	Up              time.Duration `json:"up"`   // nanoseconds since the kernel began
	Busy            time.Duration `json:"busy"` // nanoseconds that its CPUs were not idle since then, all together
	CPUs            int           `json:"cpus"`
	MemoryTotal     int64         `json:"memoryTotal"`     // bytes
	MemoryAvailable int64         `json:"memoryAvailable"` // bytes that programs could still get
}
