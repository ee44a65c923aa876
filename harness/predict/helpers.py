"""What has to be known of helpers and kernel functions to follow a program: tables, by number (enum bpf_func_id)."""

from __future__ import annotations

# Helpers whose prototype returns a pointer or null (RET_PTR_TO_..._OR_NULL): map_lookup_elem, sk_lookup_tcp and _udp,
# sk_fullsock, tcp_sock, get_listener_sock, skc_lookup_tcp, sk_storage_get, ringbuf_reserve, skc_to_*,
# inode_storage_get, per_cpu_ptr, task_storage_get, sock_from_file, kptr_xchg, map_lookup_percpu_elem,
# skc_to_mptcp_sock, dynptr_data, cgrp_storage_get.
RETURNS_POINTER = frozenset(
    (1, 84, 85, 95, 96, 98, 99, 107, 131, 136, 137, 138, 139, 140, 145, 153, 156, 162, 178, 194, 195, 196, 203, 210)
)

# Helpers that take a function: (argument of theirs, argument of the function) that is passed on to it. Kernel:
# set_map_elem_callback_state(), set_loop_callback_state(), set_find_vma_callback_state(),
# set_user_ringbuf_callback_state().
CALLBACK_CONTEXT = {164: (3, 4), 180: (4, 3), 181: (3, 2), 209: (3, 2)}

KFUNC_NO_RETURN = frozenset(("bpf_throw",))

# map_lookup_elem, map_update_elem, map_delete_elem, map_push_elem, map_pop_elem, map_peek_elem,
# map_lookup_percpu_elem: argument -> 1 when it is as long as the map's key (in the first argument), 2 its value. In all
# others the size of memory stands in the argument behind it.
MAP_ARGUMENTS: dict[int, dict[int, int]] = {
    1: {2: 1}, 2: {2: 1, 3: 2}, 3: {2: 1}, 87: {2: 2}, 88: {2: 2}, 89: {2: 2}, 195: {2: 1},
}  # fmt: skip
