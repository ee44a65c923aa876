"""What a program's section name says: program type, attach type, flags. Mirrors libbpf's `section_defs`.

A name that ends in "+" in the table matches itself or itself plus "/..."; every other name matches only exactly
(libbpf's sec_def_matches()). The first match counts. Numbers are those of `enum bpf_prog_type` and `enum
bpf_attach_type` (UAPI bpf.h), names those of libbpf_bpf_prog_type_str() and libbpf_bpf_attach_type_str().
"""

from __future__ import annotations

PROG_TYPES = (
    "unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock lwt_in lwt_out "
    "lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr lwt_seg6local lirc_mode2 "
    "sk_reuseport flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt tracing struct_ops ext lsm "
    "sk_lookup syscall netfilter"
).split()

ATTACH_TYPES = (
    "cgroup_inet_ingress cgroup_inet_egress cgroup_inet_sock_create cgroup_sock_ops sk_skb_stream_parser "
    "sk_skb_stream_verdict cgroup_device sk_msg_verdict cgroup_inet4_bind cgroup_inet6_bind cgroup_inet4_connect "
    "cgroup_inet6_connect cgroup_inet4_post_bind cgroup_inet6_post_bind cgroup_udp4_sendmsg cgroup_udp6_sendmsg "
    "lirc_mode2 flow_dissector cgroup_sysctl cgroup_udp4_recvmsg cgroup_udp6_recvmsg cgroup_getsockopt "
    "cgroup_setsockopt trace_raw_tp trace_fentry trace_fexit modify_return lsm_mac trace_iter "
    "cgroup_inet4_getpeername cgroup_inet6_getpeername cgroup_inet4_getsockname cgroup_inet6_getsockname xdp_devmap "
    "cgroup_inet_sock_release xdp_cpumap sk_lookup xdp sk_skb_verdict sk_reuseport_select "
    "sk_reuseport_select_or_migrate perf_event trace_kprobe_multi lsm_cgroup struct_ops netfilter tcx_ingress "
    "tcx_egress trace_uprobe_multi cgroup_unix_connect cgroup_unix_sendmsg cgroup_unix_recvmsg "
    "cgroup_unix_getpeername cgroup_unix_getsockname netkit_primary netkit_peer trace_kprobe_session "
    "trace_uprobe_session trace_fsession"
).split()

PROG_TYPE = {name: number for number, name in enumerate(PROG_TYPES)}
ATTACH_TYPE = {name: number for number, name in enumerate(ATTACH_TYPES)}

# Flags of a section definition (libbpf's enum sec_def_flags).
EXP_ATTACH_OPT = 1  # expected_attach_type may be left out on kernels that do not know it
ATTACHABLE = 2
ATTACH_BTF = 4  # the part after "/" names a kernel function or type, found in BTF
SLEEPABLE = 8
XDP_FRAGS = 16
USDT = 32
_OPT = ATTACHABLE | EXP_ATTACH_OPT

BPF_F_SLEEPABLE = 1 << 4
BPF_F_XDP_HAS_FRAGS = 1 << 5

# section | program type | attach type ("-" for none) | flags
_ROWS = (
    ("socket", "socket_filter", "-", 0),
    ("sk_reuseport/migrate", "sk_reuseport", "sk_reuseport_select_or_migrate", ATTACHABLE),
    ("sk_reuseport", "sk_reuseport", "sk_reuseport_select", ATTACHABLE),
    ("kprobe+", "kprobe", "-", 0),
    ("uprobe+", "kprobe", "-", 0),
    ("uprobe.s+", "kprobe", "-", SLEEPABLE),
    ("kretprobe+", "kprobe", "-", 0),
    ("uretprobe+", "kprobe", "-", 0),
    ("uretprobe.s+", "kprobe", "-", SLEEPABLE),
    ("kprobe.multi+", "kprobe", "trace_kprobe_multi", 0),
    ("kretprobe.multi+", "kprobe", "trace_kprobe_multi", 0),
    ("kprobe.session+", "kprobe", "trace_kprobe_session", 0),
    ("uprobe.multi+", "kprobe", "trace_uprobe_multi", 0),
    ("uretprobe.multi+", "kprobe", "trace_uprobe_multi", 0),
    ("uprobe.session+", "kprobe", "trace_uprobe_session", 0),
    ("uprobe.multi.s+", "kprobe", "trace_uprobe_multi", SLEEPABLE),
    ("uretprobe.multi.s+", "kprobe", "trace_uprobe_multi", SLEEPABLE),
    ("uprobe.session.s+", "kprobe", "trace_uprobe_session", SLEEPABLE),
    ("ksyscall+", "kprobe", "-", 0),
    ("kretsyscall+", "kprobe", "-", 0),
    ("usdt+", "kprobe", "-", USDT),
    ("usdt.s+", "kprobe", "-", USDT | SLEEPABLE),
    ("tc/ingress", "sched_cls", "tcx_ingress", 0),
    ("tc/egress", "sched_cls", "tcx_egress", 0),
    ("tcx/ingress", "sched_cls", "tcx_ingress", 0),
    ("tcx/egress", "sched_cls", "tcx_egress", 0),
    ("tc", "sched_cls", "-", 0),
    ("classifier", "sched_cls", "-", 0),
    ("action", "sched_act", "-", 0),
    ("netkit/primary", "sched_cls", "netkit_primary", 0),
    ("netkit/peer", "sched_cls", "netkit_peer", 0),
    ("tracepoint+", "tracepoint", "-", 0),
    ("tp+", "tracepoint", "-", 0),
    ("raw_tracepoint+", "raw_tracepoint", "-", 0),
    ("raw_tp+", "raw_tracepoint", "-", 0),
    ("raw_tracepoint.w+", "raw_tracepoint_writable", "-", 0),
    ("raw_tp.w+", "raw_tracepoint_writable", "-", 0),
    ("tp_btf+", "tracing", "trace_raw_tp", ATTACH_BTF),
    ("fentry+", "tracing", "trace_fentry", ATTACH_BTF),
    ("fmod_ret+", "tracing", "modify_return", ATTACH_BTF),
    ("fexit+", "tracing", "trace_fexit", ATTACH_BTF),
    ("fentry.s+", "tracing", "trace_fentry", ATTACH_BTF | SLEEPABLE),
    ("fmod_ret.s+", "tracing", "modify_return", ATTACH_BTF | SLEEPABLE),
    ("fexit.s+", "tracing", "trace_fexit", ATTACH_BTF | SLEEPABLE),
    ("fsession+", "tracing", "trace_fsession", ATTACH_BTF),
    ("fsession.s+", "tracing", "trace_fsession", ATTACH_BTF | SLEEPABLE),
    ("freplace+", "ext", "-", ATTACH_BTF),
    ("lsm+", "lsm", "lsm_mac", ATTACH_BTF),
    ("lsm.s+", "lsm", "lsm_mac", ATTACH_BTF | SLEEPABLE),
    ("lsm_cgroup+", "lsm", "lsm_cgroup", ATTACH_BTF),
    ("iter+", "tracing", "trace_iter", ATTACH_BTF),
    ("iter.s+", "tracing", "trace_iter", ATTACH_BTF | SLEEPABLE),
    ("syscall", "syscall", "-", SLEEPABLE),
    ("xdp.frags/devmap", "xdp", "xdp_devmap", XDP_FRAGS),
    ("xdp/devmap", "xdp", "xdp_devmap", ATTACHABLE),
    ("xdp.frags/cpumap", "xdp", "xdp_cpumap", XDP_FRAGS),
    ("xdp/cpumap", "xdp", "xdp_cpumap", ATTACHABLE),
    ("xdp.frags", "xdp", "xdp", XDP_FRAGS),
    ("xdp", "xdp", "xdp", _OPT),
    ("perf_event", "perf_event", "-", 0),
    ("lwt_in", "lwt_in", "-", 0),
    ("lwt_out", "lwt_out", "-", 0),
    ("lwt_xmit", "lwt_xmit", "-", 0),
    ("lwt_seg6local", "lwt_seg6local", "-", 0),
    ("sockops", "sock_ops", "cgroup_sock_ops", _OPT),
    ("sk_skb/stream_parser", "sk_skb", "sk_skb_stream_parser", _OPT),
    ("sk_skb/stream_verdict", "sk_skb", "sk_skb_stream_verdict", _OPT),
    ("sk_skb/verdict", "sk_skb", "sk_skb_verdict", _OPT),
    ("sk_skb", "sk_skb", "-", 0),
    ("sk_msg", "sk_msg", "sk_msg_verdict", _OPT),
    ("lirc_mode2", "lirc_mode2", "lirc_mode2", _OPT),
    ("flow_dissector", "flow_dissector", "flow_dissector", _OPT),
    ("cgroup_skb/ingress", "cgroup_skb", "cgroup_inet_ingress", _OPT),
    ("cgroup_skb/egress", "cgroup_skb", "cgroup_inet_egress", _OPT),
    ("cgroup/skb", "cgroup_skb", "-", 0),
    ("cgroup/sock_create", "cgroup_sock", "cgroup_inet_sock_create", ATTACHABLE),
    ("cgroup/sock_release", "cgroup_sock", "cgroup_inet_sock_release", ATTACHABLE),
    ("cgroup/sock", "cgroup_sock", "cgroup_inet_sock_create", _OPT),
    ("cgroup/post_bind4", "cgroup_sock", "cgroup_inet4_post_bind", ATTACHABLE),
    ("cgroup/post_bind6", "cgroup_sock", "cgroup_inet6_post_bind", ATTACHABLE),
    ("cgroup/bind4", "cgroup_sock_addr", "cgroup_inet4_bind", ATTACHABLE),
    ("cgroup/bind6", "cgroup_sock_addr", "cgroup_inet6_bind", ATTACHABLE),
    ("cgroup/connect4", "cgroup_sock_addr", "cgroup_inet4_connect", ATTACHABLE),
    ("cgroup/connect6", "cgroup_sock_addr", "cgroup_inet6_connect", ATTACHABLE),
    ("cgroup/connect_unix", "cgroup_sock_addr", "cgroup_unix_connect", ATTACHABLE),
    ("cgroup/sendmsg4", "cgroup_sock_addr", "cgroup_udp4_sendmsg", ATTACHABLE),
    ("cgroup/sendmsg6", "cgroup_sock_addr", "cgroup_udp6_sendmsg", ATTACHABLE),
    ("cgroup/sendmsg_unix", "cgroup_sock_addr", "cgroup_unix_sendmsg", ATTACHABLE),
    ("cgroup/recvmsg4", "cgroup_sock_addr", "cgroup_udp4_recvmsg", ATTACHABLE),
    ("cgroup/recvmsg6", "cgroup_sock_addr", "cgroup_udp6_recvmsg", ATTACHABLE),
    ("cgroup/recvmsg_unix", "cgroup_sock_addr", "cgroup_unix_recvmsg", ATTACHABLE),
    ("cgroup/getpeername4", "cgroup_sock_addr", "cgroup_inet4_getpeername", ATTACHABLE),
    ("cgroup/getpeername6", "cgroup_sock_addr", "cgroup_inet6_getpeername", ATTACHABLE),
    ("cgroup/getpeername_unix", "cgroup_sock_addr", "cgroup_unix_getpeername", ATTACHABLE),
    ("cgroup/getsockname4", "cgroup_sock_addr", "cgroup_inet4_getsockname", ATTACHABLE),
    ("cgroup/getsockname6", "cgroup_sock_addr", "cgroup_inet6_getsockname", ATTACHABLE),
    ("cgroup/getsockname_unix", "cgroup_sock_addr", "cgroup_unix_getsockname", ATTACHABLE),
    ("cgroup/sysctl", "cgroup_sysctl", "cgroup_sysctl", ATTACHABLE),
    ("cgroup/getsockopt", "cgroup_sockopt", "cgroup_getsockopt", ATTACHABLE),
    ("cgroup/setsockopt", "cgroup_sockopt", "cgroup_setsockopt", ATTACHABLE),
    ("cgroup/dev", "cgroup_device", "cgroup_device", _OPT),
    ("struct_ops+", "struct_ops", "-", 0),
    ("struct_ops.s+", "struct_ops", "-", SLEEPABLE),
    ("sk_lookup", "sk_lookup", "sk_lookup", ATTACHABLE),
    ("netfilter", "netfilter", "netfilter", 0),
)

# First libbpf release with the section name, where that is after 1.1 (the oldest rule version we follow): an older
# libbpf finds no definition and says "missing BPF prog type".
_SINCE = {
    "struct_ops.s+": (1, 2), "netfilter": (1, 2),
    "tc/ingress": (1, 3), "tc/egress": (1, 3), "tcx/ingress": (1, 3), "tcx/egress": (1, 3),
    "netkit/primary": (1, 3), "netkit/peer": (1, 3),
    "uprobe.multi+": (1, 3), "uretprobe.multi+": (1, 3), "uprobe.multi.s+": (1, 3), "uretprobe.multi.s+": (1, 3),
    "cgroup/connect_unix": (1, 3), "cgroup/sendmsg_unix": (1, 3), "cgroup/recvmsg_unix": (1, 3),
    "cgroup/getpeername_unix": (1, 3), "cgroup/getsockname_unix": (1, 3),
    "kprobe.session+": (1, 5), "usdt.s+": (1, 5), "sk_skb/verdict": (1, 5),  # 1.5.0 has them, 1.1.2 not
    "uprobe.session+": (1, 6), "uprobe.session.s+": (1, 6),
    "fsession+": (1, 7), "fsession.s+": (1, 7),
}  # fmt: skip

_EXACT = {row[0]: row for row in _ROWS if not row[0].endswith("+")}
_PREFIX = {row[0][:-1]: row for row in _ROWS if row[0].endswith("+")}

# What stands before the attach target's name in kernel BTF, and its BTF kind (libbpf's btf_get_kernel_prefix_kind()).
ATTACH_PREFIX = {
    "trace_raw_tp": ("btf_trace_", "typedef"),
    "lsm_mac": ("bpf_lsm_", "func"),
    "lsm_cgroup": ("bpf_lsm_", "func"),
    "trace_iter": ("bpf_iter_", "func"),
}


class SecDef:
    """One program's section, read: `type` and `attach` are numbers, `flags` the constants above.

    `target` is the text after the first "/" (what is attached to), None when the section has none.
    """

    __slots__ = ("attach", "flags", "target", "type")

    def __init__(self, type_: int, attach: int, flags: int, target: str | None) -> None:
        self.type = type_
        self.attach = attach
        self.flags = flags
        self.target = target

    @property
    def type_name(self) -> str:
        return PROG_TYPES[self.type]

    @property
    def attach_name(self) -> str | None:
        """libbpf's word for the attach type; None where the type is 0 only because nothing was said."""
        if self.attach == 0 and self.type != PROG_TYPE["cgroup_skb"]:
            return None
        return ATTACH_TYPES[self.attach] if self.attach or self.flags & ATTACHABLE else None

    @property
    def is_sleepable(self) -> bool:
        return bool(self.flags & SLEEPABLE)

    @property
    def prog_flags(self) -> int:
        """`bpf_attr.prog_flags` that follow from the section (libbpf_prepare_prog_load())."""
        return (BPF_F_SLEEPABLE if self.flags & SLEEPABLE else 0) | (
            BPF_F_XDP_HAS_FRAGS if self.flags & XDP_FRAGS else 0
        )


def parse_section(section: str, rules: tuple[int, ...] | None = None) -> SecDef | None:
    """The definition for an ELF section name (a leading "?" is ignored), None when libbpf would know none.

    `rules` is a libbpf version as a tuple: names younger than it are unknown.
    """
    name = section.removeprefix("?")
    row = _EXACT.get(name) or _prefix_row(name)
    if row is None or (rules is not None and _SINCE.get(row[0], (0,)) > tuple(rules)[:2]):
        return None
    attach = 0 if row[2] == "-" else ATTACH_TYPE[row[2]]
    _, slash, target = name.partition("/")
    return SecDef(PROG_TYPE[row[1]], attach, row[3], target if slash else None)


def _prefix_row(name: str) -> tuple[str, str, str, int] | None:
    return _PREFIX.get(name.partition("/")[0])
