/* One program for each way of attaching, and for each way it can fail. Every one of them loads. */
#define SEC(name) __attribute__((section(name), used))

char _license[] SEC("license") = "GPL";

#define PROG(section, name, result) \
	SEC(section) int name(void *ctx) { return result; }

PROG("kprobe/do_exit", kprobe_there, 0)
PROG("kretprobe/do_exit", kretprobe_there, 0)
PROG("kprobe/no_such_function", kprobe_gone, 0)
PROG("ksyscall/getpid", ksyscall_there, 0)
PROG("kprobe.multi/do_ex*t", multi_there, 0)
PROG("kprobe.multi/no_such_*", multi_gone, 0)
PROG("tp/sched/sched_switch", tp_there, 0)
PROG("tp/sched/no_such", tp_gone, 0)
SEC("tp/sched/sched_process_wait") int tp_too_far(long *ctx) { return ctx[200] ? 1 : 0; }
PROG("raw_tp/sched_switch", raw_there, 0)
PROG("raw_tp/no_such", raw_gone, 0)
SEC("raw_tp/sched_switch") int raw_too_many(long *ctx) { return ctx[11] ? 1 : 0; }
PROG("tp_btf/sched_switch", btf_there, 0)
PROG("fentry/do_exit", fentry_there, 0)
PROG("iter/task", iter_there, 0)
PROG("perf_event", perf_there, 0)
PROG("xdp", xdp_there, 0)
PROG("tc", tc_there, 0)
PROG("action", action_there, 0)
#ifndef LIBBPF_1_1 /* which knows no such sections */
PROG("tcx/ingress", tcx_since_6_6, 0)
PROG("uprobe.multi/libc.so.6:getp*id", user_multi_since_6_6, 0)
#endif
PROG("socket", socket_there, 0)
PROG("sk_lookup", lookup_there, 1)
PROG("cgroup_skb/ingress", cgroup_there, 1)
PROG("cgroup/connect4", connect_there, 1)
PROG("sk_msg", msg_there, 1)
PROG("sk_skb/stream_parser", parser_there, 0)
PROG("sk_skb/stream_verdict", skb_verdict_there, 1)
PROG("sk_skb", skb_there, 1)
PROG("uprobe/libc.so.6:getppid", uprobe_there, 0)
PROG("uretprobe/libc.so.6:getppid", uretprobe_there, 0)
PROG("uprobe/libc.so.6:no_such_function", uprobe_gone, 0)
PROG("uprobe//opt/tool/bin/tool:main", uprobe_elsewhere, 0)
PROG("usdt/libc.so.6:libc:setjmp", usdt_without_maps, 0)

/* As much of a congestion control as the kernel asks for; `half` lacks what it cannot do without. */
struct tcp_congestion_ops {
	unsigned int (*ssthresh)(void *sk);
	void (*cong_avoid)(void *sk, unsigned int ack, unsigned int acked);
	unsigned int (*undo_cwnd)(void *sk);
	char name[16];
};
SEC("struct_ops/ssthresh") unsigned int ops_ssthresh(void *ctx) { return 2; }
SEC("struct_ops/cong_avoid") void ops_cong_avoid(void *ctx) {}
SEC("struct_ops/undo_cwnd") unsigned int ops_undo_cwnd(void *ctx) { return 2; }
SEC("struct_ops/half_ssthresh") unsigned int half_ssthresh(void *ctx) { return 2; }
SEC(".struct_ops") struct tcp_congestion_ops whole = {
	.ssthresh = (void *)ops_ssthresh, .cong_avoid = (void *)ops_cong_avoid, .undo_cwnd = (void *)ops_undo_cwnd,
	.name = "corematrix_all",
};
SEC(".struct_ops") struct tcp_congestion_ops half = { .ssthresh = (void *)half_ssthresh, .name = "corematrix_half" };
