//go:build linux

package xdpprog

import (
	"net/netip"
	"testing"
	"time"
)

// TestOverflow: while the flow table has no room for all flows, what comes from a
// backend is ours in mode alone, whatever it is; the fast path tells the replies.
func TestOverflow(t *testing.T) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		r := fullRig(t, mode, nil)
		r.alive(t, directSlot)
		now := monotonic()
		for _, tt := range []struct {
			name  string
			until uint64
			src   netip.AddrPort
			want  Reason
		}{
			{"never", 0, backend4, ReasonNotOurs},
			{"over", now - uint64(time.Second), backend4, ReasonNotOurs},
			{"now", now + uint64(time.Hour), backend4, ReasonOverflow},
			{"now, IPv6", now + uint64(time.Hour), backend6, ReasonOverflow},
			{"now, of another source", now + uint64(time.Hour), netip.AddrPortFrom(known4.Addr(), 9), ReasonNotOurs},
		} {
			r.table.SetOverflow(tt.until)
			dst := netip.AddrPortFrom(known4.Addr(), 55555)
			if tt.src.Addr().Is6() {
				dst = netip.AddrPortFrom(known6.Addr(), 55555)
			}
			if mode == ModeFront {
				tt.want = ReasonNotOurs
			}
			frame := packet{src: tt.src, dst: dst, proto: udp}.frame(t)
			if got, want := r.ingress(t, frame, r.direct, 0), ours(tt.want, directSlot, "pass"); got != want {
				t.Errorf("mode %s, %s: got %v, want %v", mode, tt.name, got, want)
			}
		}
	}
}
