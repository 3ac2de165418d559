package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// pathBytes is the payload of the frames that are shown.
const pathBytes = 64

// way is one exchange as four frames: each of two before and after Sluice.
type way struct {
	request, delivered *sighting // client's eth0, backend's eth0
	answer, returned   *sighting // backend's eth0, client's eth0
}

// paths makes an exchange of each kind and prints its frames.
func (r *run) paths(ctx context.Context) error {
	p := r.out
	p.title("The way of one frame and of its answer (* what Sluice changed)")
	for _, k := range kinds() {
		w, err := r.path(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.fail(fmt.Errorf("%s: %w", k, err))
			continue
		}
		r.good[k]++
		w.draw(p, k)
	}
	return nil
}

// path makes one exchange and finds its four frames.
func (r *run) path(ctx context.Context, k kind) (way, error) {
	for _, w := range r.watchers {
		w.record(true)
		defer w.record(false)
	}
	x, err := r.exchange(ctx, k, pathBytes)
	if err != nil {
		return way{}, err
	}
	for range 50 {
		if w, ok := r.find(x); ok {
			return w, nil
		}
		time.Sleep(20 * time.Millisecond) // the captures are behind
	}
	return way{}, fmt.Errorf("the captures did not see each of the four frames of the exchange from port %d", x.Local.Port())
}

// find picks the frames of an exchange. Payload and the client's port are the
// same at both ends; nothing else need be.
func (r *run) find(x netlab.Exchanged) (w way, ok bool) {
	for _, at := range r.watchers {
		for _, s := range at.record(true) {
			out := s.frame.Direction == netlab.Out
			client := s.at == r.lab.client.HostDevice
			switch {
			case client && out && s.src().Port() == x.Local.Port():
				w.request = &s
			case client && !out && s.dst().Port() == x.Local.Port():
				w.returned = &s
			case !client && !out && s.src().Port() == x.Local.Port():
				w.delivered = &s
			case !client && out && s.dst().Port() == x.Local.Port():
				w.answer = &s
			}
		}
	}
	return w, w.request != nil && w.delivered != nil && w.answer != nil && w.returned != nil
}

// draw prints the four frames side by side.
func (w *way) draw(p *printer, k kind) {
	frames := []*sighting{w.request, w.delivered, w.answer, w.returned}
	p.blank()
	p.line("  %-9s  %-21s %-21s %-21s %s", k, w.request.at+" sends", w.delivered.at+" receives", w.answer.at+" sends", w.returned.at+" receives")
	rows := []struct {
		name string
		text func(*sighting) string
	}{
		{"MAC to", func(s *sighting) string { return net.HardwareAddr(s.frame.Data[0:6]).String() }},
		{"MAC from", func(s *sighting) string { return net.HardwareAddr(s.frame.Data[6:12]).String() }},
		{"from", func(s *sighting) string { return s.src().Addr().String() }},
		{"  port", func(s *sighting) string { return fmt.Sprint(s.packet.SrcPort) }},
		{"to", func(s *sighting) string { return s.dst().Addr().String() }},
		{"  port", func(s *sighting) string { return fmt.Sprint(s.packet.DstPort) }},
		{map[netlab.Family]string{netlab.IPv4: "TTL", netlab.IPv6: "hop limit"}[k.family], func(s *sighting) string { return fmt.Sprint(s.packet.TTL) }},
		{"checksum", (*sighting).checksum},
	}
	for _, row := range rows {
		var cells [4]string
		for i, s := range frames {
			cells[i] = row.text(s)
		}
		for i := 1; i < 4; i += 2 {
			if cells[i] != cells[i-1] {
				cells[i] = "*" + cells[i]
			} else {
				cells[i] = " " + cells[i]
			}
		}
		// The marks stand in the gaps between the columns.
		p.line("  %-9s  %-20s %s%-20s %s", row.name, cells[0], p.changed(cells[1], 23), cells[2], p.changed(cells[3], 0))
	}
}

// checksum is the transport's, and whether a device still has to finish it.
func (s *sighting) checksum() string {
	at := int(s.packet.L4) + 6
	if s.packet.Proto == 6 {
		at = int(s.packet.L4) + 16
	}
	state := "complete"
	if s.frame.Partial {
		state = "partial"
	}
	return fmt.Sprintf("%04x %s", binary.BigEndian.Uint16(s.frame.Data[at:]), state)
}
