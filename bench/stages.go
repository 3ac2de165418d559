//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Profile is where the time of all cores went while a peer was under a workload.
type Profile struct {
	Scenario string  `json:"scenario"`
	Workload string  `json:"workload"`
	Params   string  `json:"params,omitempty"`
	Peer     string  `json:"peer"`
	Per      string  `json:"per"` // what the time is divided by: frame, connection
	Count    float64 `json:"count"`
	// Parts is nanoseconds per frame, by stage.
	Parts map[string]float64 `json:"parts"`
}

// stages are the parts of a frame's way, in the order of plots, and the functions that belong to
// each. A sample belongs to the first of its functions, from the innermost out, that any stage
// names; a name ends in * if it is a beginning.
var stages = []struct {
	name      string
	functions string
}{
	{"generator", "udp_sendmsg ip_make_skb __ip_append_data sock_alloc_send_pskb:send tcp_sendmsg* __sys_sendmmsg ___sys_sendmsg __sys_sendto __x64_sys_sendmmsg bpf_test_run_xdp_live bpf_test_run xdp_test_run_batch bpf_prog_*_generate bpf_prog_test_run_xdp __sys_connect inet_stream_connect tcp_v4_connect __sys_socket __sys_bind"},
	{"veth", "veth_xmit veth_xdp_xmit veth_ndo_xdp_xmit veth_poll veth_xdp_rcv veth_xdp_rcv_one veth_xdp_rcv_skb veth_convert_skb_to_xdp_buff veth_forward_skb dev_hard_start_xmit __dev_queue_xmit sch_direct_xmit netif_rx* process_backlog __napi_schedule* net_rx_action napi_complete_done xdp_do_flush* xdp_do_redirect* xdp_build_skb_from_frame __xdp_build_skb_from_frame napi_gro_receive gro_* dev_gro_receive"},
	{"peer's BPF program", "bpf_prog_*_tc_nat bpf_prog_*_xdp_nat bpf_prog_*_xdp bpf_prog_*_sluice* bpf_prog_*_ingress* bpf_prog_*_egress* bpf_prog_*_steer* bpf_redirect* skb_do_redirect bpf_prog_run_generic_xdp do_xdp_generic"},
	{"netfilter, conntrack", "nf_* nft_* ipt_* ip6t_* xt_* __nf_* nfnetlink* ipv4_conntrack* nf_hook_slow early_drop destroy_conntrack"},
	{"IP, core receive path", "tcx_run sch_handle_ingress ip_rcv* ip_forward* ip_output ip_finish_output* ip_local_out __ip_local_out ip_route_input* fib_* __netif_receive_skb* netif_receive_skb* ip_sublist_rcv* ip_list_rcv* neigh_* skb_defer_free* ip_send_check"},
	{"AF_XDP receive", "__xsk_rcv __xsk_rcv_memcpy xsk_rcv* __xsk_map_redirect xsk_map_* xsk_generic_rcv xsk_flush xsk_copy_xdp* __xsk_map_flush xsk_buff_alloc* xp_alloc* sock_def_readable:xsk ep_poll_callback:xsk"},
	{"AF_XDP transmit", "xsk_build_skb* xsk_sendmsg __xsk_sendmsg xsk_generic_xmit __xsk_generic_xmit __dev_direct_xmit xsk_destruct_skb xsk_poll xsk_cq_* xskq_* xsk_skb_*"},
	{"receiver's stack", "ip_local_deliver* udp_rcv __udp4_lib_rcv udp_queue_rcv* udp_unicast_rcv* tcp_v4_rcv tcp_* __tcp_* sock_def_readable bpf_prog_*_sink bpf_prog_*_early kfree_skb* napi_consume_skb"},
	{"sink", "__sys_recvmmsg ___sys_recvmsg udp_recvmsg __x64_sys_recvmmsg do_recvmmsg __sys_recvfrom do_epoll_wait ep_poll __sys_accept4 do_epoll_ctl ksys_read ksys_write __x64_sys_close __fput task_work_run"},
	{"Go: rings and frames", "dataplane/xsk.* dataplane.(*worker).receive dataplane.(*worker).transmit dataplane.(*worker).flush dataplane.(*worker).reap dataplane.totalLen"},
	{"Go: parse", "nat.Parse* nat.(*Packet).Parse* dataplane.(*worker).parse nat.parse*"},
	{"Go: look up", "flowtable.* dataplane.(*worker).lookup"},
	{"Go: rewrite", "nat.*"},
	{"Go: decide, egress", "dataplane.* service.*"},
	{"Go: runtime", "runtime.* syscall.* internal/runtime/* golang.org/x/sys/* time.* sync.* sync/atomic.*"},
	{"waking and sleeping", "schedule* __schedule try_to_wake_up* ttwu_* do_futex futex_* do_nanosleep hrtimer_* __x64_sys_poll do_sys_poll do_poll* __x64_sys_ppoll do_syscall_64 entry_SYSCALL_64* ret_from_fork* smp_call_function* sysvec_* asm_sysvec_* __do_softirq handle_softirqs do_softirq* __local_bh_enable_ip irq_exit_rcu"},
	{"other", ""},
}

// stageIndex finds stages by function.
type stageIndex struct {
	exact  map[string]int
	prefix []stagePrefix
}

type stagePrefix struct {
	begin string
	stage int
}

const modulePath = "github.com/sluice-net/sluice/"

func newStageIndex() *stageIndex {
	x := &stageIndex{exact: map[string]int{}}
	for i, s := range stages {
		for f := range strings.FieldsSeq(s.functions) {
			f, _, _ = strings.Cut(f, ":")
			if begin, ok := strings.CutSuffix(f, "*"); ok {
				x.prefix = append(x.prefix, stagePrefix{begin, i})
			} else {
				x.exact[f] = i
			}
		}
	}
	// The longest beginning decides.
	slices.SortStableFunc(x.prefix, func(a, b stagePrefix) int { return len(b.begin) - len(a.begin) })
	return x
}

// of is the stage of a function, or -1.
func (x *stageIndex) of(function string) int {
	function = strings.TrimPrefix(function, modulePath)
	// bpf_prog_<tag>_<name>
	if rest, ok := strings.CutPrefix(function, "bpf_prog_"); ok {
		if _, name, ok := strings.Cut(rest, "_"); ok {
			switch name {
			case "generate":
				return x.exact["bpf_prog_*_generate"]
			case "sink", "early":
				return x.exact["bpf_prog_*_"+name]
			}
			return x.exact["bpf_prog_*_tc_nat"]
		}
	}
	if i, ok := x.exact[function]; ok {
		return i
	}
	for _, p := range x.prefix {
		if strings.HasPrefix(function, p.begin) {
			return p.stage
		}
	}
	return -1
}

// idle functions mean that a core had nothing to do.
var idle = []string{"default_idle", "pv_native_safe_halt", "native_safe_halt", "acpi_safe_halt", "default_idle_call", "cpuidle_idle_call", "do_idle"}

// divide gives each stage its share of the samples, in time, and the folded stacks.
func divide(samples []sample, kernel *kernelSymbols, ours func(pid int) bool, period time.Duration) (parts map[string]float64, folded map[string]int) {
	x := newStageIndex()
	parts, folded = map[string]float64{}, map[string]int{}
	self := os.Getpid()
	for _, s := range samples {
		var names []string
		for _, a := range s.kernel {
			names = append(names, kernel.name(a))
		}
		ring0 := len(names)
		if s.pid == self || ours(s.pid) {
			for i, a := range s.user {
				names = append(names, goNames(a, i == 0 && len(s.kernel) == 0)...)
			}
		}
		stage := -1
		for i, n := range names {
			if stage = x.of(n); stage >= 0 {
				break
			}
			if i < ring0 && slices.Contains(idle, n) {
				stage = -2
				break
			}
		}
		if stage == -2 || s.pid == 0 && stage < 0 {
			continue
		}
		name := "other"
		switch {
		case stage >= 0:
			name = stages[stage].name
		case s.pid == self:
			name = "generator"
		}
		// The suite's own Go code sends and receives.
		if strings.HasPrefix(name, "Go: ") && s.pid == self {
			name = "generator"
			if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "Sink") || strings.Contains(n, "Server") }) {
				name = "sink"
			}
		}
		parts[name] += float64(period.Nanoseconds())
		slices.Reverse(names)
		folded[strings.Join(names, ";")]++
	}
	return parts, folded
}

// profiled are the workloads that are looked into, and what their time is divided by.
func (r *runner) profiled(s scenario) (list []workload) {
	for _, w := range s.workloads {
		switch w.name {
		case "pps-sockets", "pps-sockets-to-tap", "pps-injected", "crr", "bulk":
			if !slices.ContainsFunc(list, func(o workload) bool { return o.name == w.name }) {
				list = append(list, w)
			}
		}
	}
	return list
}

// profile gives each peer one more turn of some workloads, and looks on. The turn is in no series.
func (r *runner) profile(ctx context.Context, s scenario) error {
	if err := os.MkdirAll(r.PProf, 0o755); err != nil {
		return err
	}
	for _, b := range r.beds {
		if _, err := b.loadTraffic(); err != nil {
			return err
		}
	}
	kernel, err := readKernelSymbols()
	if err != nil {
		return err
	}
	r.looking = true
	defer func() { r.looking = false }()
	duration := r.duration
	r.duration = max(duration, 1500*time.Millisecond)
	defer func() { r.duration = duration }()
	for _, w := range r.profiled(s) {
		for _, b := range r.beds {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if w.unsuited != nil && w.unsuited(b.peer) != "" {
				continue
			}
			r.progress.step(0, "%s: looking into %s %s: %s", s.name(), w.name, w.params, b.peer.Name())
			p, err := r.profileOne(ctx, s, w, b, kernel)
			if err != nil {
				r.Log.Warn("not profiled", "scenario", s.name(), "workload", w.name, "peer", b.peer.Name(), "err", err)
				continue
			}
			r.result.Profiles = slices.DeleteFunc(r.result.Profiles, func(o *Profile) bool {
				return o.Scenario == p.Scenario && o.Workload == p.Workload && o.Params == p.Params && o.Peer == p.Peer
			})
			r.result.Profiles = append(r.result.Profiles, p)
		}
	}
	return nil
}

func (r *runner) profileOne(ctx context.Context, s scenario, w workload, b *bed, kernel *kernelSymbols) (*Profile, error) {
	name := strings.NewReplacer(" ", "-", "=", "").Replace(strings.Join([]string{s.name(), w.name, w.params, b.peer.Name()}, "-"))
	goProfile := make(chan error, 1)
	pids := map[int]bool{}
	if p, ok := b.instance.(Process); ok {
		for _, pid := range p.Pids() {
			pids[pid] = sameProgram(pid)
		}
	}
	if p, ok := b.instance.(Profiler); ok {
		go func() {
			data, err := p.CPUProfile(ctx, r.duration)
			if err == nil {
				err = os.WriteFile(filepath.Join(r.PProf, name+".pprof"), data, 0o644)
			}
			goProfile <- err
		}()
	} else {
		goProfile <- nil
	}
	sampler, err := startSampler()
	if err != nil {
		return nil, err
	}
	o, err := w.run(ctx, r, b)
	took := r.duration * 5 / 4 // what is measured, and a quarter before it
	samples, serr := sampler.stop()
	if err := errors.Join(err, serr, <-goProfile); err != nil {
		return nil, err
	}
	parts, folded := divide(samples, kernel, func(pid int) bool { return pids[pid] }, samplePeriod)
	p := &Profile{Scenario: s.name(), Workload: w.name, Params: w.params, Peer: b.peer.Name(), Per: "frame", Parts: parts}
	switch {
	case o.values["conn_rate"] > 0:
		p.Per, p.Count = "connection", o.values["conn_rate"]*took.Seconds()
	case o.values["bits"] > 0:
		p.Per, p.Count = "KiB", o.values["bits"]*1e9/8/1024*took.Seconds()
	case b.peer.Name() == "generator":
		p.Count = o.values["offered"] * took.Seconds()
	default:
		p.Count = float64(o.tally.Received) // all that came while it was looked into
	}
	if p.Count == 0 {
		return nil, errors.New("nothing arrived")
	}
	for part := range parts {
		parts[part] /= p.Count
	}
	return p, writeFolded(filepath.Join(r.PProf, name+".folded"), folded)
}

// sameProgram reports whether a process runs this very program, whose functions this process can
// name.
func sameProgram(pid int) bool {
	a, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	b, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && os.SameFile(a, b)
}

// writeFolded writes stacks for a flame graph.
func writeFolded(name string, folded map[string]int) error {
	var lines []string
	for stack, n := range folded {
		lines = append(lines, fmt.Sprintf("%s %d\n", stack, n))
	}
	slices.Sort(lines)
	return os.WriteFile(name, []byte(strings.Join(lines, "")), 0o644)
}
