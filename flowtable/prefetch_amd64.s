#include "textflag.h"

// A prefetch retires at once, where a load waits in the core's queue for its line: all misses of a batch are under way
// together. It never faults, so that a record number out of a damaged cell does no harm.

// func prefetchBuckets(buckets *bucket, n uint64, hashes []uint64)
TEXT ·prefetchBuckets(SB), NOSPLIT, $0-40
	MOVQ buckets+0(FP), AX
	MOVQ n+8(FP), BX
	MOVQ hashes_base+16(FP), CX
	MOVQ hashes_len+24(FP), DX
	TESTQ DX, DX
	JZ   done

next:
	MOVL (CX), SI
	IMULQ BX, SI
	SHRQ $32, SI
	SHLQ $6, SI // BucketSize
	PREFETCHT0 (AX)(SI*1)
	ADDQ $8, CX
	DECQ DX
	JNZ  next

done:
	RET

// func prefetchRecords(records *record, refs []Ref)
TEXT ·prefetchRecords(SB), NOSPLIT, $0-32
	MOVQ records+0(FP), AX
	MOVQ refs_base+8(FP), CX
	MOVQ refs_len+16(FP), DX
	TESTQ DX, DX
	JZ   done

next:
	MOVL (CX), SI // Ref.Record
	SHLQ $7, SI   // RecordSize
	PREFETCHT0 (AX)(SI*1)
	ADDQ $8, CX   // a Ref
	DECQ DX
	JNZ  next

done:
	RET
