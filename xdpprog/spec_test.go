package xdpprog

import (
	"strings"
	"testing"
	"time"
)

func TestSpecDefaults(t *testing.T) {
	s := Spec{FlowBuckets: 2, FlowRecords: 2}.withDefaults()
	want := Spec{
		Slots: 256, Queues: 1, ReturnQueues: 1, FlowBuckets: 2, FlowRecords: 2, MaxAddresses: 262144,
		StaleAfter: 250 * time.Millisecond, HoldFor: 3 * time.Second,
	}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	if err := s.validate(); err != nil {
		t.Error(err)
	}
}

func TestSpecRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"mode", func(s *Spec) { s.Mode = 2 }, "unknown mode 2"},
		{"conntrack", func(s *Spec) { s.Conntrack = 3 }, "unknown conntrack setting 3"},
		{"no slots", func(s *Spec) { s.Slots = -1 }, "-1 slots of 1 queues"},
		{"more slots than a mark can name", func(s *Spec) { s.Slots = 1<<16 + 1 }, "65537 slots"},
		{"too many sockets", func(s *Spec) { s.Slots, s.Queues = 1<<16, 1<<9 }, "the product at most"},
		{"one bucket", func(s *Spec) { s.FlowBuckets = 1 }, "1 flow buckets"},
		{"no records", func(s *Spec) { s.FlowRecords = 0 }, "0 flow records"},
		{"addresses", func(s *Spec) { s.MaxAddresses = -1 }, "at most -1 addresses"},
		{"stale", func(s *Spec) { s.StaleAfter = -1 }, "stale before"},
		{"outer", func(s *Spec) { s.OuterIfindex = -1 }, "ifindex -1"},
		{"return queues", func(s *Spec) { s.ReturnQueues = 2 }, "2 queues of 1"},
		{"return slot", func(s *Spec) { s.ReturnSlot = 256 }, "slot 256 of 256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Spec{FlowBuckets: 2, FlowRecords: 2}.withDefaults()
			tt.edit(&s)
			if err := s.validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
