//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testContext bounds a test's waiting.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// wire is two namespaces with a veth pair, eth0 to eth0.
func wire(t *testing.T, o VethOptions) (a, b *Namespace) {
	t.Helper()
	RequireRoot(t)
	lab := New(t)
	a, b = lab.Namespace("a"), lab.Namespace("b")
	lab.Veth(a, "eth0", b, "eth0", o)
	return a, b
}

func TestInjectCapture(t *testing.T) {
	a, b := wire(t, VethOptions{})
	ctx := testContext(t)
	ours := func(f *Frame) bool { return len(f.Data) > 13 && f.Data[12] == 0x88 && f.Data[13] == 0xb5 }
	in := b.Capture("eth0", CaptureOptions{Match: ours})
	out := a.Capture("eth0", CaptureOptions{Match: ours})
	frame := append(append(append([]byte{}, b.MAC("eth0")...), a.MAC("eth0")...), 0x88, 0xb5)
	frame = append(frame, bytes.Repeat([]byte{0xa5}, 50)...)
	if n, err := a.Inject("eth0").Send(frame, frame, frame); n != 3 || err != nil {
		t.Fatalf("sent %d of 3: %v", n, err)
	}
	for _, tt := range []struct {
		c    *Capture
		want Direction
	}{{in, In}, {out, Out}} {
		f, err := tt.c.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.Data, frame) || f.Direction != tt.want || f.Length != len(frame) || f.Partial || f.Time.IsZero() {
			t.Errorf("captured %+v, want %x going %v", f, frame, tt.want)
		}
		rest, err := tt.c.Drain()
		if len(rest) != 2 || err != nil {
			t.Errorf("drained %d frames, %v; want 2", len(rest), err)
		}
	}
}
