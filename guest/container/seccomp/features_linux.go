package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go/features"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Features describes this package in the terms of the OCI.
func Features() *features.Seccomp {
	yes := true
	f := &features.Seccomp{
		Enabled: &yes,
		Actions: []string{
			string(specs.ActAllow), string(specs.ActErrno), string(specs.ActKill), string(specs.ActKillProcess),
			string(specs.ActKillThread), string(specs.ActLog), string(specs.ActTrace), string(specs.ActTrap),
		},
		Operators: []string{
			string(specs.OpEqualTo), string(specs.OpGreaterEqual), string(specs.OpGreaterThan), string(specs.OpLessEqual),
			string(specs.OpLessThan), string(specs.OpMaskedEqual), string(specs.OpNotEqual),
		},
		KnownFlags:     []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
		SupportedFlags: []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
	}
	for _, m := range machines() {
		f.Archs = append(f.Archs, string(m.name))
	}
	return f
}
