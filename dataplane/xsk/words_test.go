package xsk

import (
	"encoding/binary"
	"testing"
)

func TestWordsAreTheMemory(t *testing.T) {
	mem := make([]byte, 64)
	words, err := Words(mem)
	if err != nil {
		t.Fatal(err)
	}
	if len(words) != 8 {
		t.Fatalf("64 bytes: got %d words, want 8", len(words))
	}
	words[3].Store(0x0102030405060708)
	if got := binary.NativeEndian.Uint64(mem[24:]); got != 0x0102030405060708 {
		t.Errorf("word 3 in memory: got %#x", got)
	}
}

func TestWordsRefusesWhatIsNotAligned(t *testing.T) {
	mem := make([]byte, 64)
	for _, m := range [][]byte{mem[:63], mem[1:57]} {
		if _, err := Words(m); err == nil {
			t.Errorf("%d bytes: got no error", len(m))
		}
	}
}
