"""Everything an object may hold besides relocations, under both loaders on this machine's kernel: the installed libbpf
judges, or the one that COREMATRIX_TEST_LIBBPF names.
"""

# One case is one line, however long: a table.
# ruff: noqa: E501

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from harness.guest import libbpf_loader
from harness.guest.judge import Machine, judge
from harness.guest.libbpf_ffi import DEFAULT_PATH
from harness.judge.agreement import disagreements
from tests.support.clang import compile_bpf
from tests.support.real_libbpf import needs_bpf

pytestmark = needs_bpf

LIBBPF = os.environ.get("COREMATRIX_TEST_LIBBPF", DEFAULT_PATH)
MACROS = """
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define MAPS SEC(".maps")
#define KEEP(x) asm volatile("" : : "r"(x))
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static long (*const update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static long (*const loop)(u32 count, void *callback, void *ctx, u64 flags) = (void *)181;
static long (*const spin_lock)(void *lock) = (void *)93;
static long (*const spin_unlock)(void *lock) = (void *)94;
static long (*const printk)(const char *text, u32 size, ...) = (void *)6;
"""
TP = 'SEC("raw_tp/sched_process_exec") '


def using(definition: str, name: str = "m") -> str:
    return f"struct {{ {definition} }} {name} MAPS;\n{TP} int f(void *ctx) {{ KEEP(&{name}); return 0; }}"


def size(kind: int, key: int, value: int, entries: int, more: str = "") -> str:
    return f"__uint(type, {kind}); __uint(key_size, {key}); __uint(value_size, {value}); __uint(max_entries, {entries}); {more}"


# fmt: off
MAPS = {
    "hash": size(1, 4, 8, 4), "array": size(2, 4, 8, 4), "prog_array": size(3, 4, 4, 4), "perf_event_array": "__uint(type, 4); __uint(key_size, 4); __uint(value_size, 4);",
    "percpu_hash": size(5, 4, 8, 4), "percpu_array": size(6, 4, 8, 4), "stack_trace": size(7, 4, 1016, 8), "cgroup_array": size(8, 4, 4, 1),
    "lru_hash": size(9, 4, 8, 4), "lru_percpu_hash": size(10, 4, 8, 4), "lpm_trie": size(11, 8, 8, 4, "__uint(map_flags, 1);"), "devmap": size(14, 4, 4, 4),
    "sockmap": size(15, 4, 4, 4), "cpumap": size(16, 4, 4, 4), "xskmap": size(17, 4, 4, 4), "sockhash": size(18, 4, 4, 4), "reuseport_sockarray": size(20, 4, 8, 4),
    "queue": size(22, 0, 4, 8), "stack": size(23, 0, 4, 8), "sk_storage": size(24, 4, 4, 0, "__uint(map_flags, 1);"), "devmap_hash": size(25, 4, 4, 4),
    "ringbuf": "__uint(type, 27); __uint(max_entries, 4096);", "ringbuf_of_odd_size": "__uint(type, 27); __uint(max_entries, 5000);", "ringbuf_of_no_size": "__uint(type, 27);",
    "inode_storage": "__uint(type, 28); __uint(map_flags, 1); __type(key, int); __type(value, int);", "task_storage": "__uint(type, 29); __uint(map_flags, 1); __type(key, int); __type(value, int);",
    "cgrp_storage": "__uint(type, 32); __uint(map_flags, 1); __type(key, int); __type(value, int);", "bloom_filter": "__uint(type, 30); __uint(max_entries, 8); __uint(value_size, 4); __uint(map_extra, 3);",
    "user_ringbuf": "__uint(type, 31); __uint(max_entries, 4096);", "arena": "__uint(type, 33); __uint(map_flags, 1 << 10); __uint(max_entries, 4);",
    "no_entries": size(1, 4, 8, 0), "no_entries_array": "__uint(type, 2); __uint(key_size, 4); __uint(value_size, 4);", "no_value_stack_trace": "__uint(type, 7); __uint(key_size, 4); __uint(max_entries, 8);",
    "pinned_by_name": size(2, 4, 8, 4, "__uint(pinning, 1);"), "flags": size(1, 4, 8, 4, "__uint(map_flags, 1);"), "numa_node": size(1, 4, 8, 4, "__uint(map_flags, 4); __uint(numa_node, 0);"),
    "key_of_two_sizes": size(1, 4, 8, 4, "__type(key, u64);"), "value_of_two_sizes": size(1, 4, 8, 4, "__type(value, u32);"), "unknown_field": size(1, 4, 8, 4, "__uint(corematrix, 1);"),
    "unknown_kind": size(200, 4, 8, 4), "no_kind": "__uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 4);", "pinning_unknown": size(2, 4, 8, 4, "__uint(pinning, 7);"),
    "key_too_small": size(2, 2, 8, 4), "value_struct": "__uint(type, 1); __uint(max_entries, 4); __type(key, struct { int a; long b; }); __type(value, struct { char c[33]; });",
    "value_is_a_name_alone": "__uint(type, 1); __uint(max_entries, 4); __type(key, int); __type(value, struct undeclared);",
}
OBJECTS = {
    "inner_map_from_template": f'struct {{ __uint(type, 12); __uint(max_entries, 2); __uint(key_size, 4); __array(values, struct {{ {size(2, 4, 8, 1)} }}); }} outer MAPS; {TP} int f(void *ctx) {{ KEEP(&outer); return 0; }}',
    "inner_map_with_values": f'struct inner {{ {size(2, 4, 8, 1)} }} one MAPS, two MAPS; struct {{ __uint(type, 12); __uint(max_entries, 4); __uint(key_size, 4); __array(values, struct inner); }} outer MAPS = {{ .values = {{ [1] = &one, [3] = &two }} }}; {TP} int f(void *ctx) {{ KEEP(&outer); return 0; }}',
    "inner_map_in_hash": f'struct inner {{ {size(1, 4, 8, 1)} }} one MAPS; struct {{ __uint(type, 13); __uint(max_entries, 4); __uint(key_size, 4); __array(values, struct inner); }} outer MAPS = {{ .values = {{ [2] = &one }} }}; {TP} int f(void *ctx) {{ KEEP(&outer); return 0; }}',
    "inner_map_of_another_kind": f'struct inner {{ {size(2, 4, 8, 1)} }} one MAPS; struct other {{ {size(1, 4, 4, 9)} }}; struct {{ __uint(type, 12); __uint(max_entries, 4); __uint(key_size, 4); __array(values, struct other); }} outer MAPS = {{ .values = {{ [1] = (void *)&one }} }}; {TP} int f(void *ctx) {{ KEEP(&outer); return 0; }}',
    "prog_array_with_values": f'{TP} int first(void *ctx); {TP} int second(void *ctx); struct {{ __uint(type, 3); __uint(max_entries, 4); __uint(key_size, 4); __array(values, int(void *)); }} jumps MAPS = {{ .values = {{ [0] = (void *)&first, [3] = (void *)&second }} }}; {TP} int first(void *ctx) {{ tail_call(ctx, &jumps, 3); return 0; }} {TP} int second(void *ctx) {{ return 0; }}',
    "value_with_spin_lock": 'struct v { struct bpf_spin_lock { u32 val; } lock; int n; }; struct { __uint(type, 2); __uint(max_entries, 1); __type(key, int); __type(value, struct v); } m MAPS; SEC("tc") int f(void *ctx) { int key = 0; struct v *v = lookup(&m, &key); if (v) { spin_lock(&v->lock); v->n++; spin_unlock(&v->lock); } return 0; }',
    "data_of_all_kinds": f'int zero; int set = 7; static volatile int hidden_zero; static volatile int hidden_set = 9; const volatile int constant = 3; const volatile char words[] = "words"; int SEC(".data.own") own = 4; const volatile int SEC(".rodata.own") own_constant = 5; int SEC(".bss.own") own_zero; {TP} int f(void *ctx) {{ set += zero + constant + words[2] + own + own_constant + own_zero; hidden_zero += hidden_set; return set; }}',
    "data_only_static": f'static const volatile int a = 3; static volatile int b; {TP} int f(void *ctx) {{ b += a; return b; }}',
    "strings": f'{TP} int f(void *ctx) {{ static const char text[] = "count %d\\n"; printk(text, sizeof(text), 4); return 0; }}',
    "data_offset": f'int table[64] = {{ 1 }}; {TP} int f(void *ctx) {{ return table[17] + table[63]; }}',
    "static_subprograms": f'static noinline int deep(int x) {{ KEEP(x); return x + 1; }} static noinline int sub(int x) {{ KEEP(x); return deep(x) + deep(x + 1); }} {TP} int f(void *ctx) {{ return sub(1); }} {TP} int g(void *ctx) {{ return deep(2) + sub(3); }}',
    "global_subprograms": f'noinline int sub(int x) {{ KEEP(x); return x + 1; }} noinline int bad(int *p) {{ return *p; }} hidden noinline int quiet(int x) {{ KEEP(x); return x; }} {TP} int f(void *ctx) {{ return sub(1) + quiet(2); }} {TP} int g(void *ctx) {{ int x = 3; return bad(&x); }}',
    "weak_subprogram": f'__attribute__((weak)) noinline int sub(int x) {{ KEEP(x); return x + 1; }} {TP} int f(void *ctx) {{ return sub(1); }}',
    "callback": f'static int step(u32 index, void *ctx) {{ return index > 2; }} {TP} int f(void *ctx) {{ return loop(9, step, 0, 0); }}',
    "callback_in_a_subprogram": f'static int step(u32 index, void *ctx) {{ return index > 2; }} static noinline long sub(int n) {{ return loop(n, step, 0, 0); }} {TP} int f(void *ctx) {{ return sub(3) + sub(4); }}',
    "one_refused_among_others": f'{TP} int good(void *ctx) {{ return 0; }} {TP} int bad(void *ctx) {{ return *(int *)(u64)8; }} {TP} int last(void *ctx) {{ return 0; }}',
    "map_refused_among_others": f'struct {{ {size(2, 2, 8, 4)} }} bad MAPS; struct {{ {size(2, 4, 8, 4)} }} good MAPS; {TP} int of_bad(void *ctx) {{ KEEP(&bad); return 0; }} {TP} int of_good(void *ctx) {{ KEEP(&good); return 0; }}',
    "decl_and_type_tags": f'struct v {{ int __attribute__((btf_type_tag("percpu"))) *p; int q; }} __attribute__((btf_decl_tag("corematrix"))); struct v value; {TP} int f(void *ctx) {{ return value.q; }}',
    "floats_in_btf": f'struct v {{ double d; float e; int q; }} value; {TP} int f(void *ctx) {{ return value.q; }}',
    "enum64_in_btf": f'enum big {{ BIG = 0x123456789abcULL }}; struct v {{ enum big e; int q; }} value; {TP} int f(void *ctx) {{ return value.q + (value.e == BIG); }}',
    "no_license": 'char LICENSE_X[1]; ' + f'{TP} int f(void *ctx) {{ return 0; }}',
    "version_section": f'u32 version_ SEC("version") = 0x50a00; {TP} int f(void *ctx) {{ return 0; }}',
    "version_section_short": f'u16 version_ SEC("version") = 0x50a; {TP} int f(void *ctx) {{ return 0; }}',
    "legacy_maps_section": f'struct {{ u32 a, b, c, d, e; }} old SEC("maps") = {{ 1, 4, 8, 4 }}; {TP} int f(void *ctx) {{ KEEP(&old); return 0; }}',
    "no_program": 'int just_data = 3;',
    "empty_section_name": 'SEC("?") int f(void *ctx) { return 0; }',
    "same_section_twice": 'SEC("xdp") int f(void *ctx) { return 1; } SEC("xdp") int g(void *ctx) { return 2; }',
    "extern_without_a_section": f'extern int nowhere; {TP} int f(void *ctx) {{ return nowhere; }}',
    "extern_function_without_a_section": f'extern int nowhere(int); {TP} int f(void *ctx) {{ return nowhere(3); }}',
    "static_program": 'static SEC("xdp") __attribute__((used)) int f(void *ctx) { return 1; }',
    "lone_program_in_text": 'int f(void *ctx) { return 1; }',
}
SECTIONS = (
    "socket", "kprobe/do_unlinkat", "kprobe", "kprobe/do_unlinkat+0x10", "kretprobe/do_unlinkat", "uprobe", "uprobe//bin/sh:main", "uretprobe", "uprobe.s//bin/sh:main", "ksyscall/unlink", "kretsyscall/unlink", "usdt//bin/sh:a:b", "usdt.s//bin/sh:a:b", "fsession/do_unlinkat",
    "kprobe.multi/do_*", "kretprobe.multi/do_*", "tp/sched/sched_switch", "tracepoint/sched/sched_switch", "tp", "raw_tp/sched_switch", "raw_tp", "raw_tp.w/sched_switch", "raw_tracepoint/sched_switch", "perf_event",
    "tp_btf/sched_switch", "tp_btf/no_such_tp", "tp_btf", "fentry/do_unlinkat", "fentry.s/do_unlinkat", "fexit/do_unlinkat", "fexit.s/do_unlinkat", "fentry", "fentry/no_such_function", "fmod_ret/security_file_open", "fmod_ret.s/security_file_open",
    "freplace/some", "freplace", "lsm/file_open", "lsm.s/file_open", "lsm/no_such_hook", "lsm_cgroup/socket_create", "iter/task", "iter.s/task", "iter/no_such_iter", "iter", "syscall",
    "xdp", "xdp.frags", "xdp/devmap", "xdp.frags/devmap", "xdp/cpumap", "xdp_devmap/x", "xdp/eth0", "tc", "classifier", "action", "tc/ingress", "tcx/ingress", "netkit/primary", "netfilter", "lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local", "lirc_mode2",
    "cgroup_skb/ingress", "cgroup_skb/egress", "cgroup/skb", "cgroup/sock_create", "cgroup/sock_release", "cgroup/sock", "cgroup/post_bind4", "cgroup/post_bind6", "cgroup/bind4", "cgroup/bind6", "cgroup/connect4", "cgroup/connect6", "cgroup/connect_unix",
    "cgroup/sendmsg4", "cgroup/sendmsg6", "cgroup/recvmsg4", "cgroup/recvmsg6", "cgroup/getpeername4", "cgroup/getsockname6", "cgroup/sysctl", "cgroup/getsockopt", "cgroup/setsockopt", "cgroup/dev",
    "sockops", "sk_skb/stream_parser", "sk_skb/stream_verdict", "sk_skb", "sk_skb/verdict", "sk_msg", "sk_lookup", "sk_reuseport", "sk_reuseport/migrate", "flow_dissector", "struct_ops", "struct_ops/name", "struct_ops.s/name",
    "kprobe.session/do_*", "uprobe.multi//bin/sh:m*", "no_such_section", "xdpx", "kprobes/x", "fentryx/do_unlinkat", "?xdp", "?no_such_section", "?kprobe/do_unlinkat", "tp_btf/sched_switch/more", ".text.own",
)
# fmt: on


@functools.cache
def _machine() -> Machine:
    return Machine.survey()


def _both(text: str) -> dict[str, Any]:
    """What libbpf says, with which our loader agrees."""
    data, version = compile_bpf(MACROS + text), libbpf_loader.version(LIBBPF)
    ask = {"name": "object", "rules": version, "evidence": False, "libbpf": LIBBPF}
    theirs, ours = (
        judge(_machine(), data, {**ask, "loader": one}, lambda _message: None) for one in ("libbpf", "python")
    )
    assert disagreements(ours, theirs) == []
    return theirs


@pytest.mark.parametrize("name", MAPS)
def test_map(name: str) -> None:
    facts = _both(using(MAPS[name]))
    assert facts["maps"] or facts["object_error"]


@pytest.mark.parametrize("name", OBJECTS)
def test_object(name: str) -> None:
    _both(OBJECTS[name])


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str) -> None:
    facts = _both(f'SEC("{section}") int f(void *ctx) {{ return 0; }}\n{TP} int other(void *ctx) {{ return 0; }}')
    if facts["object_error"] is None:
        assert {prog["name"]: prog["loaded"] for prog in facts["progs"]}["other"], "one refusal hid another's verdict"


def test_the_tables_reach_what_they_name() -> None:
    """Most of them load on a kernel of today; a table of nothing but refusals would prove little."""
    loaded = sum(
        any(prog["loaded"] for prog in _both(using(MAPS[name]))["progs"])
        for name in ("hash", "ringbuf", "task_storage")
    )
    assert loaded == 3
