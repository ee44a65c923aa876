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
PROG("tc", tc_by_netlink, 0)
PROG("tcx/ingress", tcx_since_6_6, 0)
PROG("socket", socket_there, 0)
PROG("sk_lookup", lookup_there, 1)
PROG("cgroup_skb/ingress", cgroup_there, 1)
PROG("cgroup/connect4", connect_there, 1)
PROG("uprobe//bin/true:main", uprobe_untried, 0)
