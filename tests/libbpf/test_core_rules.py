"""Every numbered rule of CO-RE relocation, decided by the installed libbpf at test time and compared with our engine.

A case gives two C texts, the program's types and the kernel's, and what libbpf is known to make of it in a word, so
that a case which no longer reaches its rule fails. Values, texts and instructions are libbpf's, none is typed in here.
"""

# One case is one line, however long: a table.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.agreement import compare
from tests.support.clang import compile_bpf, compile_target


@dataclass(frozen=True)
class Case:
    """`local` declares types, `use` is the program's body (reading `r` and `p`), `target` the kernel's types, `keep`
    those to keep. `outcomes` is what libbpf says of the records in order, its first letter each: r(esolved),
    p(oisoned), e(rror).
    """

    name: str
    local: str
    use: str
    target: str
    keep: tuple[str, ...]
    outcomes: str
    argument: str = "void *p"
    cpu: str = "v3"


def _program(case: Case) -> bytes:
    text = f'{case.local}\nSEC("socket") u64 prog({case.argument})\n{{ u64 r = 0; {case.use} return r; }}\n'
    return compile_bpf(text, cpu=case.cpu)


def field(local: str, path: str, kind: str = "BYTE_OFF") -> str:
    return f"r += field_info((({local} *)p)->{path}, {kind});"


def nested(levels: int) -> str:
    """A struct that is `levels` members above the int `x` in the innermost one."""
    inner = "struct d0 { int x; };" + "".join(f" struct d{n} {{ struct d{n - 1} m; }};" for n in range(1, levels))
    return f"{inner} struct s {{ int pad; struct d{levels - 1} m; }};"


def anonymous(levels: int) -> str:
    return "struct s { int pad; " + "struct { " * levels + "int b; " + "}; " * levels + "};"


def pointers(levels: int) -> str:
    return f"typedef int {'*' * levels}q;"


# fmt: off
S = "struct s"
CASES = [
    # 1.3 candidates and flavors
    Case("moved", "struct s { int a; int b; };", field(S, "b"), "struct s { long x; int b; int a; };", (S,), "r"),
    Case("flavor_of_local", "struct s___old { int b; };", field("struct s___old", "b"), "struct s { int a, b; };", (S,), "r"),
    Case("flavor_of_target", "struct s { int b; };", field(S, "b"), "struct s___x { int a, b; };", ("struct s___x",), "r"),
    Case("flavors_of_both", "struct s___a { int b; };", field("struct s___a", "b"), "struct s___b { int a, b; };", ("struct s___b",), "r"),
    Case("last_flavor_counts", "struct s___a___b { int b; };", field("struct s___a___b", "b"), "struct s___a { int a, b; };", ("struct s___a",), "p"),
    Case("last_flavor_matches", "struct s___a___b { int b; };", field("struct s___a___b", "b"), "struct s___a___c { int a, b; };", ("struct s___a___c",), "r"),
    Case("four_underscores", "struct s____y { int b; };", field("struct s____y", "b"), "struct s { int a, b; };", (S,), "p"),
    Case("four_underscores_same", "struct s____y { int b; };", field("struct s____y", "b"), "struct s____y { int a, b; };", ("struct s____y",), "r"),
    Case("trailing_underscores", "struct s___ { int b; };", field("struct s___", "b"), "struct s { int a, b; };", (S,), "p"),
    Case("leading_underscores", "struct ___s { int b; };", field("struct ___s", "b"), "struct ___s { int a, b; };", ("struct ___s",), "r"),
    Case("root_kind_struct_union", "struct s { int b; };", field(S, "b"), "union s { int a, b; };", ("union s",), "p"),
    Case("root_kind_typedef", "struct s { int b; };", field(S, "b"), "typedef struct { int a, b; } s;", ("s",), "p"),
    Case("typedef_root", "typedef struct { int b; } s;", field("s", "b"), "typedef struct { int a, b; } s;", ("s",), "r"),
    Case("no_candidate", "struct gone { int b; };", field("struct gone", "b"), "struct s { int b; };", (S,), "p"),
    Case("forward_only", "struct fwd; struct s { struct fwd *f; };", "r += type_info(struct fwd, T_EXISTS);", "struct fwd { int a; };", ("struct fwd",), "r"),
    Case("forward_finds_forward", "struct fwd; struct s { struct fwd *f; };", "r += type_info(struct fwd, T_EXISTS);", "struct fwd; struct s { struct fwd *f; };", (S,), "r"),
    Case("anonymous_root", "typedef struct { int a; } t; struct s { struct { int b; } x; };", "r += field_info(((typeof(((struct s *)p)->x) *)p)->b, BYTE_OFF);", "struct s { int b; };", (S,), "e"),
    # 1.4, 1.5 paths
    Case("nested", "struct i { int x; }; struct s { struct i i; };", field(S, "i.x"), "struct i { long pad; int x; }; struct s { int a; struct i i; };", (S,), "r"),
    Case("into_anonymous", "struct s { int b; };", field(S, "b"), "struct s { int a; struct { int c; union { long d; struct { int e; int b; }; }; }; };", (S,), "r"),
    Case("out_of_anonymous", "struct s { struct { int a; union { int b; }; }; };", field(S, "b"), "struct s { long x; int b; };", (S,), "r"),
    Case("deep_anonymous_both", "struct s { union { struct { int z; int b; }; long y; }; };", field(S, "b"), "struct s { int q; struct { int z; struct { int w; int b; }; }; };", (S,), "r"),
    Case("struct_for_union_below", "struct s { struct { int x; } i; };", field(S, "i.x"), "struct s { int a; union { long y; int x; } i; };", (S,), "r"),
    Case("member_flavor_kept", "struct s { int b___x; };", field(S, "b___x"), "struct s { int a, b; };", (S,), "p"),
    Case("member_renamed", "struct s { int state; };", field(S, "state"), "struct s { int __state; };", (S,), "p"),
    Case("array_element", "struct s { int a[8]; };", field(S, "a[3]"), "struct s { long x; int a[8]; };", (S,), "r"),
    Case("array_shorter", "struct s { int a[8]; };", field(S, "a[5]"), "struct s { int a[4]; };", (S,), "p"),
    Case("array_gone", "struct s { int a[8]; };", field(S, "a[5]"), "struct s { int a; };", (S,), "p"),
    Case("array_of_structs", "struct e { int x, y; }; struct s { struct e e[4]; };", field(S, "e[2].y"), "struct e { long pad; int x, y; }; struct s { int z; struct e e[4]; };", (S,), "r"),
    Case("two_dimensions", "struct s { int a[4][5]; };", field(S, "a[2][3]"), "struct s { long pad; int a[4][7]; };", (S,), "r"),
    Case("flexible_local", "struct s { int n; int a[]; };", field(S, "a[7]"), "struct s { int n; long m; int a[16]; };", (S,), "r"),
    Case("flexible_target", "struct s { int n; int a[16]; };", field(S, "a[7]"), "struct s { int n; long m; int a[]; };", (S,), "r"),
    Case("flexible_zero", "struct s { int n; int a[0]; };", field(S, "a[7]"), "struct s { int n; long m; int a[0]; };", (S,), "r"),
    Case("zero_array_not_last", "struct s { int n; int a[4]; int z; };", field(S, "a[2]"), "struct s { int n; int a[0]; int z; };", (S,), "p"),
    Case("local_zero_array_not_last", "struct s { int n; int a[0]; int z; };", field(S, "a[2]"), "struct s { int n; int a[0]; int z; };", (S,), "e"),
    Case("root_index", "struct s { int a, b; };", "r += field_info(((struct s *)p)[3].b, BYTE_OFF);", "struct s { long x; int a, b; };", (S,), "r"),
    Case("incompatible_ends_search", "struct s { int b; };", field(S, "b"), "struct s { int *b; };", (S,), "p"),
    Case("union_members", "union s { int a; long b; };", field("union s", "b"), "union s { long b; };", ("union s",), "r"),
    Case("target_without_size", "typedef struct h h; struct h { int a; }; ", "r += field_info(((h *)p)->a, BYTE_OFF);", "struct h; typedef struct h h; struct k { h *x; };", ("struct k",), "e"),
    Case("levels_most", nested(62), field(S, "m." * 62 + "x"), nested(62).replace("int pad", "long pad"), (S,), "r"),
    Case("levels_too_many", nested(63), field(S, "m." * 63 + "x"), nested(63), (S,), "e"),
    Case("anonymous_levels", "struct s { int b; };", field(S, "b"), anonymous(40), (S,), "r"),
    Case("anonymous_levels_too_many", "struct s { int b; };", field(S, "b"), anonymous(70), (S,), "e"),
    # 1.6 field types
    Case("typedef_chain", "typedef int a; typedef const a b; typedef volatile b c; struct s { c x; };", field(S, "x"), "struct s { long y; unsigned x; };", (S,), "r"),
    Case("float_for_double", "struct s { double b; };", field(S, "b"), "struct s { int a; float b; };", (S,), "r"),
    # 1.7 depth
    Case("pointers_most", pointers(31), "r += type_info(q, T_EXISTS);", pointers(31), ("q",), "r"),
    Case("pointers_too_many", pointers(32), "r += type_info(q, T_EXISTS);", pointers(32), ("q",), "e"),
    Case("pointers_too_many_to_match", pointers(32), "r += type_info(q, T_MATCHES);", pointers(32), ("q",), "e"),
    Case("functions_in_functions", "typedef int (*a)(int); typedef a (*b)(a); typedef b (*q)(b);", "r += type_info(q, T_EXISTS);", "typedef int (*a)(int); typedef a (*b)(a); typedef b (*q)(b);", ("q",), "r"),
    Case("int_any_width", "struct s { int b; };", field(S, "b"), "struct s { char pad; unsigned long long b; };", (S,), "r"),
    Case("int_for_bool", "struct s { int b; };", field(S, "b"), "struct s { char pad; bool b; };", (S,), "r"),
    Case("ptr_any_pointee", "struct s { int *b; };", field(S, "b"), "struct s { char pad; struct q *b; };", (S,), "r"),
    Case("int_for_ptr", "struct s { long b; };", field(S, "b"), "struct s { char pad; void *b; };", (S,), "p"),
    Case("int_for_enum", "struct s { int b; };", field(S, "b"), "enum e { A }; struct s { char pad; enum e b; };", (S,), "p"),
    Case("enum_names", "enum e { A }; struct s { enum e b; };", field(S, "b"), "enum f { A }; struct s { char pad; enum f b; };", (S,), "p"),
    Case("enum_flavors", "enum e___x { A }; struct s { enum e___x b; };", field(S, "b"), "enum e { A }; struct s { char pad; enum e b; };", (S,), "r"),
    Case("enum_anonymous", "struct s { enum { A } b; };", field(S, "b"), "enum f { B }; struct s { char pad; enum f b; };", (S,), "r"),
    Case("enum_enum64", "enum e { A }; struct s { enum e b; };", field(S, "b"), "enum e { A = 0x100000000ULL }; struct s { char pad; enum e b; };", (S,), "r"),
    Case("array_lengths", "struct s { int b[4]; };", field(S, "b"), "struct s { char pad; long b[9]; };", (S,), "r"),
    Case("array_element_kinds", "struct s { int b[4]; };", field(S, "b"), "struct s { char pad; void *b[4]; };", (S,), "p"),
    Case("qualifiers", "struct s { int b; };", field(S, "b"), "typedef const volatile int cvi; struct s { char pad; cvi b; };", (S,), "r"),
    Case("function_pointer", "struct s { int (*b)(int); };", field(S, "b"), "struct s { char pad; void (*b)(void); };", (S,), "r"),
    # 1.9 values
    Case("exists_yes_no", "struct s { int a; int b; };", field(S, "a", "EXISTS") + field(S, "b", "EXISTS"), "struct s { int a; };", (S,), "rr"),
    Case("sizes", "struct s { char a; int b; long c; int d[4]; struct { long x, y; } e; };", "".join(field(S, m, "BYTE_SZ") for m in "abcde"), "struct s { int a; long b; int c; int d[9]; struct { long x, y, z; } e; };", (S,), "rrrrr"),
    Case("signs", "enum n { N = -1 }; enum u { U = 1 }; struct s { int a; unsigned b; char c; enum n d; enum u e; bool g; };", "".join(field(S, m, "SIGNED") for m in "abcdeg"), "enum n { N = 1 }; enum u { U = -1 }; struct s { unsigned a; int b; unsigned char c; enum n d; enum u e; bool g; };", (S,), "rrrrrr"),
    Case("shifts_of_plain", "struct s { char a; short b; int c; long d; };", "".join(field(S, m, k) for m in "abcd" for k in ("LSHIFT", "RSHIFT")), "struct s { long a; int b; short c; char d; };", (S,), "rrrrrrrr"),
    Case("shifts_of_struct", "struct s { struct { int a, b; } x; };", field(S, "x", "LSHIFT") + field(S, "x", "RSHIFT"), "struct s { struct { long a, b, c; } x; };", (S,), "rr"),
    Case("bitfields", "struct s { u32 a : 3; u32 b : 7; u64 c : 33; };", "".join(field(S, m, k) for m in "abc" for k in ("BYTE_OFF", "BYTE_SZ", "SIGNED", "LSHIFT", "RSHIFT")), "struct s { u32 b : 9; s32 a : 4; u64 c : 21; };", (S,), "r" * 15),
    Case("bitfield_to_plain", "struct s { u32 a : 3; u32 b : 7; };", "".join(field(S, m, k) for m in "ab" for k in ("BYTE_OFF", "BYTE_SZ", "SIGNED", "LSHIFT", "RSHIFT")), "struct s { u8 b; s16 a; };", (S,), "r" * 10),
    Case("plain_to_bitfield", "struct s { u32 a; u32 b; };", "".join(field(S, m, k) for m in "ab" for k in ("BYTE_OFF", "BYTE_SZ", "SIGNED", "LSHIFT", "RSHIFT")), "struct s { u32 b : 5; s32 a : 20; };", (S,), "r" * 10),
    Case("bitfield_window_grows", "struct s { u32 a : 8; u32 b : 20; };", "".join(field(S, "b", k) for k in ("BYTE_OFF", "BYTE_SZ", "LSHIFT", "RSHIFT")), "struct s { u16 x : 15; u32 y : 4; u32 b : 20; } __attribute__((packed));", (S,), "rrrr"),
    Case("bitfield_too_wide", "struct s { u64 b : 60; };", field(S, "b", "BYTE_SZ"), "struct s { u8 x : 5; u64 b : 62; } __attribute__((packed));", (S,), "e"),
    Case("bitfield_gone", "struct s { u32 a : 3; };", field(S, "a") + field(S, "a", "EXISTS"), "struct s { u32 b : 3; };", (S,), "pr"),
    Case("array_sign_is_fatal", "struct s { int a[4]; };", field(S, "a[1]", "SIGNED"), "struct s { int a[4]; };", (S,), "e"),
    Case("array_size", "struct s { int a[4]; };", field(S, "a[1]", "BYTE_SZ"), "struct s { long a[4]; };", (S,), "r"),
    Case("type_size_exists", "struct s { int a; }; struct gone { int a; };", "r += type_info(struct s, T_SIZE); r += type_info(struct s, T_EXISTS); r += type_info(struct gone, T_SIZE); r += type_info(struct gone, T_EXISTS);", "struct s { long a, b; };", (S,), "rrrr"),
    Case("type_ids", "struct s { int a; }; struct gone { int a; };", "r += type_id(struct s, ID_LOCAL); r += type_id(struct s, ID_TARGET); r += type_id(struct gone, ID_TARGET); r += type_id(struct gone, ID_LOCAL);", "struct s { long a, b; };", (S,), "rrrr"),
    Case("typedef_of_double", "typedef double d; struct s { int a; };", "r += type_info(d, T_EXISTS); r += type_info(d, T_SIZE);", "typedef double d;", ("d",), "rr"),
    Case("typedef_kinds", "typedef int a; typedef int *b; typedef int (*c)(int, long); typedef int d[4]; typedef struct { int x; } e;", "".join(f"r += type_info({t}, T_EXISTS);" for t in "abcde"), "typedef long a; typedef void *b; typedef void (*c)(int, long); typedef long d[7]; typedef union { int x; } e;", tuple("abcde"), "rrrrr"),
    Case("function_types", "typedef int (*a)(int); typedef int (*b)(int, int); typedef void (*c)(struct q *); typedef int (*d)(int);", "".join(f"r += type_info({t}, T_EXISTS);" for t in "abcd"), "typedef int (*a)(void *); typedef int (*b)(int); typedef void (*c)(struct z *); typedef void (*d)(int);", tuple("abcd"), "rrrr"),
    Case("size_of_forward", "struct h; typedef struct h h;", "r += type_info(h, T_SIZE);", "struct h; typedef struct h h; struct k { h *x; };", ("struct k",), "e"),
    Case("signs_of_small", "struct s { bool a; char b; signed char c; unsigned char d; };", "".join(field(S, m, "SIGNED") for m in "abcd"), "struct s { char a; bool b; unsigned char c; signed char d; };", (S,), "rrrr"),
    Case("enum_values", "enum e { A = 1, B = 2, C___x = 3, GONE = 4 };", "".join(f"r += enum_value(enum e, {v}, {k});" for v in ("A", "B", "C___x", "GONE") for k in ("E_EXISTS", "E_VALUE")), "enum e { A = 10, B___y = 20, C = 30 };", ("enum e",), "rrrrrrrp"),
    Case("enum_negative", "enum e { A = -5 };", "r += enum_value(enum e, A, E_VALUE);", "enum e { X = 7, A = -9 };", ("enum e",), "r"),
    Case("enum_unsigned_high", "enum e { A = 0xAAAAAAAAU };", "r += enum_value(enum e, A, E_VALUE);", "enum e { A = 0xBBBBBBBBU };", ("enum e",), "e"),
    Case("enum64", "enum e { A = 0x100000000ULL, B = 3 };", "r += enum_value(enum e, A, E_VALUE); r += enum_value(enum e, B, E_VALUE);", "enum e { B = 0x700000000ULL, A = 5 };", ("enum e",), "rr"),
    Case("enum_to_enum64", "enum e { A = 1 };", "r += enum_value(enum e, A, E_VALUE); r += enum_value(enum e, A, E_EXISTS);", "enum e { X = 0x700000000ULL, A = 0xFFFFFFFFFFFFFFF0ULL };", ("enum e",), "rr"),
    Case("enum64_to_enum", "enum e { A = 0x100000000ULL };", "r += enum_value(enum e, A, E_VALUE);", "enum e { A = -3 };", ("enum e",), "r"),
    Case("enum_by_typedef", "typedef enum { A = 1, B } e;", "r += enum_value(e, B, E_VALUE);", "typedef enum { B = 44 } e;", ("e",), "r"),
    Case("typedef_is_no_enum", "typedef enum { A = 1, B } e;", "r += enum_value(e, B, E_VALUE); r += enum_value(e, B, E_EXISTS);", "typedef int e;", ("e",), "pr"),
    # 1.10 and 1.12 sizes of loads and stores
    Case("load_widens", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; u64 b; };", (S,), "r"),
    Case("load_narrows", "struct s { u64 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; u16 b; };", (S,), "r"),
    Case("load_pointer_32", "struct s { void *b; } PAI;", "r += (u64)((struct s *)p)->b;", "struct s { int a; void *b; };", (S,), "r"),
    Case("load_signed_resized", "struct s { int b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; long b; };", (S,), "p"),
    Case("load_signed_target_only", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; s64 b; };", (S,), "p"),
    Case("load_bool_to_int", "struct s { bool b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; u32 b; };", (S,), "r"),
    Case("load_char_is_signed", "struct s { char b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; u32 b; };", (S,), "p"),
    Case("load_same_size_sign", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; int b; };", (S,), "r"),
    Case("load_enum_resized", "enum e { A }; struct s { enum e b; } PAI;", "r += ((struct s *)p)->b;", "enum e { A = 0x100000000ULL }; struct s { int a; enum e b; };", (S,), "p"),
    Case("load_bitfield_target", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; u32 b : 5; };", (S,), "p"),
    Case("load_element", "struct s { u32 b[4]; } PAI;", "r += ((struct s *)p)->b[2];", "struct s { int a; u64 b[4]; };", (S,), "r"),
    Case("load_gone", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; };", (S,), "p"),
    Case("load_sign_extending", "struct s { int b; } PAI;", "r += (s64)((struct s *)p)->b;", "struct s { int a; int b; };", (S,), "r", cpu="v4"),
    Case("load_sign_extending_resized", "struct s { short b; } PAI;", "r += (s64)((struct s *)p)->b;", "struct s { int a; int b; };", (S,), "p", cpu="v4"),
    Case("store", "struct s { u32 b; } PAI;", "((struct s *)p)->b = 7;", "struct s { int a; u32 b; };", (S,), "r", cpu="v4"),
    Case("store_register", "struct s { u32 b; } PAI;", "((struct s *)p)->b = (u64)p;", "struct s { int a; u64 b; };", (S,), "r"),
    Case("store_immediate_widens", "struct s { u32 b; } PAI;", "((struct s *)p)->b = 7;", "struct s { int a; u64 b; };", (S,), "r", cpu="v4"),
    Case("load_far", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { char a[40000]; u32 b; };", (S,), "e"),
    Case("load_just_near", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { char a[32764]; u32 b; };", (S,), "r"),
    Case("load_just_far", "struct s { u32 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { char a[32768]; u32 b; };", (S,), "e"),
    Case("offset_far_in_alu", "struct s { u32 b; };", field(S, "b"), "struct s { char a[40000]; u32 b; };", (S,), "r"),
    Case("load_sized_array_member", "struct s { u32 n; u32 b[4]; } PAI;", "u32 *q = ((struct s *)p)->b; r += (u64)q;", "struct s { u64 n; u32 b[9]; };", (S,), "r"),
    Case("load_odd_width", "struct s { u64 b; } PAI;", "r += ((struct s *)p)->b;", "struct s { int a; unsigned __int128 b; };", (S,), "e"),
    # 1.11 several candidates
    Case("duplicates_agree", "struct s { int b; };", field(S, "b"), "struct s { int a, b; }; struct s___x { int a, b; };", (S, "struct s___x"), "r"),
    Case("duplicates_offset", "struct s { int b; };", field(S, "b"), "struct s { int a, b; }; struct s___x { int b; };", (S, "struct s___x"), "e"),
    Case("duplicates_offset_exists", "struct s { int b; };", field(S, "b", "EXISTS"), "struct s { int a, b; }; struct s___x { int b; };", (S, "struct s___x"), "e"),
    Case("duplicates_size", "struct s { int b; };", field(S, "b", "BYTE_SZ"), "struct s { int b; }; struct s___x { long b; };", (S, "struct s___x"), "e"),
    Case("duplicates_type_id", "struct s { int b; };", "r += type_id(struct s, ID_TARGET);", "struct s { int b; }; struct s___x { long b; };", (S, "struct s___x"), "e"),
    Case("duplicates_type_exists", "struct s { int b; };", "r += type_info(struct s, T_EXISTS);", "struct s { int b; }; struct s___x { long b; };", (S, "struct s___x"), "r"),
    Case("duplicates_one_matches", "struct s { int b; };", field(S, "b"), "struct s { int a; }; struct s___x { int c, b; };", (S, "struct s___x"), "r"),
    Case("pruning", "struct s { int a; int b; };", field(S, "a") + field(S, "b"), "struct s { int x; int a; }; struct s___x { int b; };", (S, "struct s___x"), "rp"),
    Case("no_match_prunes_nothing", "struct s { int z; int a; int b; };", field(S, "z") + field(S, "a"), "struct s { int x; int a; }; struct s___x { int b; };", (S, "struct s___x"), "pr"),
    Case("enum_duplicates", "enum e { A = 1 };", "r += enum_value(enum e, A, E_VALUE);", "enum e { A = 3 }; enum e___x { A___x = 3 };", ("enum e", "enum e___x"), "r"),
    Case("enum_duplicates_differ", "enum e { A = 1 };", "r += enum_value(enum e, A, E_VALUE);", "enum e { A = 3 }; enum e___x { A___x = 4 };", ("enum e", "enum e___x"), "e"),
]

# 1.8: type_matches, each "local || target" of one type t (a struct, union, enum or typedef)
MATCHES = {
    "same": ("struct t { int a; long b; };", "struct t { int a; long b; };", 1),
    "subset": ("struct t { long b; };", "struct t { int a; long b; };", 1),
    "superset": ("struct t { int a; long b; int c; };", "struct t { int a; long b; };", 0),
    "reordered": ("struct t { long b; int a; };", "struct t { int a; long b; };", 1),
    "int_size": ("struct t { int a; };", "struct t { long a; };", 0),
    "int_sign": ("struct t { unsigned a; };", "struct t { int a; };", 0),
    "int_name": ("typedef int q; struct t { q a; };", "struct t { int a; };", 1),
    "pointer_to_name": ("struct z; struct t { struct z *a; };", "struct y; struct t { struct y *a; };", 0),
    "pointer_to_forward": ("struct z; struct t { struct z *a; };", "struct z { int q; }; struct t { struct z *a; };", 1),
    "pointer_to_declared": ("struct z { int q; }; struct t { struct z *a; };", "struct z; struct t { struct z *a; };", 1),
    "pointer_to_other_content": ("struct z { int q; }; struct t { struct z *a; };", "struct z { long r; }; struct t { struct z *a; };", 1),
    "pointer_struct_union": ("struct z { int q; }; struct t { struct z *a; };", "union z { int q; }; struct t { union z *a; };", 0),
    "forward_union": ("union z; struct t { union z *a; };", "struct z { int q; }; struct t { struct z *a; };", 0),
    "nested": ("struct z { int q; }; struct t { struct z a; };", "struct z { long p; int q; }; struct t { struct z a; };", 1),
    "nested_differs": ("struct z { int q; }; struct t { struct z a; };", "struct z { long q; }; struct t { struct z a; };", 0),
    "anonymous": ("struct t { struct { int q; }; };", "struct t { struct { int q; long p; }; };", 1),
    "anonymous_flat": ("struct t { int q; };", "struct t { struct { int q; }; };", 0),
    "array_length": ("struct t { int a[4]; };", "struct t { int a[5]; };", 0),
    "array_same": ("struct t { int a[4]; };", "struct t { int a[4]; long b; };", 1),
    "member_flavor": ("struct t { int a___x; };", "struct t { int a; };", 1),
    "union": ("union t { int a; };", "union t { long b; int a; };", 1),
    "enum": ("enum t { A, B };", "enum t { B = 7, C, A };", 1),
    "enum_flavors": ("enum t { A___x, B };", "enum t { B = 7, C, A };", 1),
    "enum_missing": ("enum t { A, D };", "enum t { B = 7, C, A };", 0),
    "enum_width": ("enum t { A, B };", "enum t { A, B = 0x100000000ULL };", 0),
    "function": ("typedef int (*f)(int, void *); struct t { f a; };", "typedef int (*f)(int, void *); struct t { f a; };", 1),
    "function_params": ("typedef int (*f)(int); struct t { f a; };", "typedef int (*f)(int, void *); struct t { f a; };", 0),
    "function_names_behind_ptr": ("struct t { int (*a)(long x); };", "struct t { int (*a)(long y); };", 1),
    "qualifiers": ("struct t { const int a; };", "struct t { volatile int a; };", 1),
    "float": ("struct t { double a; };", "struct t { double a; };", 0),
    "bitfield": ("struct t { int a : 3; };", "struct t { int a; };", 1),
    "type_flavor": ("struct t___x { int a; };", "struct t { int a; };", 1),
}
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule(case: Case) -> None:
    run, judged = compare(_program(case), compile_target(case.target, *case.keep))
    assert "".join(decision.outcome[0] for decision in judged.decisions) == case.outcomes, judged.log
    assert len(run.relos) == len(case.outcomes)


@pytest.mark.parametrize("name", MATCHES)
def test_type_matches(name: str) -> None:
    local, target, expected = MATCHES[name]
    own = local[local.rindex(" t") if " t___" not in local else local.index(" t___") :].split()[0]
    keyword = next(word for word in ("struct", "union", "enum") if f"{word} {own} " in local)
    case = Case(name, local, f"r += type_info({keyword} {own}, T_MATCHES);", target, (f"{keyword} t",), "r")
    _, judged = compare(_program(case), compile_target(case.target, *case.keep))
    assert [decision.new_value for decision in judged.decisions] == [expected], judged.log
