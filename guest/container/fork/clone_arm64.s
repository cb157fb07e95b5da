//go:build linux

#include "textflag.h"

// func rawClone3(args, size uintptr) (r1, errno uintptr)
//
// The return address stays in the link register: the child, which shares the
// stack, cannot overwrite it.
TEXT ·rawClone3(SB),NOSPLIT,$0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	$435, R8 // clone3
	SVC
	CMN	$4095, R0
	BCC	ok
	MOVD	$-1, R4
	MOVD	R4, r1+16(FP)
	NEG	R0, R0
	MOVD	R0, errno+24(FP)
	RET
ok:
	MOVD	R0, r1+16(FP)
	MOVD	ZR, errno+24(FP)
	RET
