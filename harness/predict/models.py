"""The verifiers there are, as far as they decide what is reached: named rules, and how to tell which kernel has which.

Distributions backport, so a kernel's version says little. What the kernel was built from stands in its BTF: most
rules are told by a type or member that the same commit, or the same release, brought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way in which verifiers differ. `markers` are structs, or structs and members, of which the BTF of kernels
    that have it holds at least one; `since` cites where it came in.
    """

    name: str
    text: str
    since: str
    markers: tuple[tuple[str, str | None], ...]


RULES = (
    Rule(
        name="constant_branches",
        text="a comparison with a constant that decides it is followed one way only; before, only `==` that holds and"
        " `!=` that does not",
        since="4.16 (f4d7e40a5b71 brought bpf_func_state to the same release); Ubuntu's 4.15 by backport",
        markers=(("bpf_func_state", None),),
    ),
    Rule(
        name="range_branches",
        text="any comparison that the ranges of both sides decide is followed one way only (is_branch_taken)",
        since="4.20, 4f7b3e82589e; told by active_spin_lock of 5.1, d83525ca62cf, later renamed, or by branches of 5.3,"
        " 2589726d12a1",
        markers=(("bpf_verifier_state", "active_spin_lock"), ("bpf_verifier_state", "branches")),
    ),
    Rule(
        name="frozen_maps",
        text="loads from frozen read-only maps (.rodata, Kconfig) give the values they hold",
        since="5.5, a23740ec43ba; told by attach_btf_id of the same release, ccfe29eb29c2",
        markers=(("bpf_prog_aux", "attach_btf_id"),),
    ),
    Rule(
        name="stack_immediates",
        text="a constant stored to the stack by BPF_ST is known when it is read back; before, only 0",
        since="6.3, ecdf985d7615; told by bpf_rb_node of the same release, 9c395c1b99bd",
        markers=(("bpf_rb_node", None),),
    ),
    Rule(
        name="lazy_globals",
        text="a global subprogram is verified only when it is called from what is reached; before, always",
        since="6.8, 2afae08c9dcb, which brought the member",
        markers=(("bpf_func_info_aux", "called"),),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A verifier: the names of the rules it follows. `global_functions`: it knows global from static subprograms (the
    program is loaded with func_info that says so).
    """

    rules: frozenset[str]
    global_functions: bool = True

    def has(self, rule: str) -> bool:
        return rule in self.rules

    def asked(self, features: Mapping[str, Any]) -> Model:
        """The same, corrected by what the kernel itself answered (`guest.features` of the facts): better than what its
        BTF suggests where a distribution has backported one rule, or the BTF is another's.
        """
        known = {name: features[name] for name in _ASKED if features.get(name) is not None}
        has = frozenset(name for name, answer in known.items() if answer)
        return replace(self, rules=(self.rules - known.keys()) | has)


# What a guest asks its kernel (harness/guest/evidence.py), under the same names.
_ASKED = ("constant_branches", "range_branches")
NEWEST = Model(rules=frozenset(rule.name for rule in RULES))
OLDEST = Model(rules=frozenset(), global_functions=False)


def model_of(has: MemberTest) -> Model:
    """The model of a kernel, from a test for types and members in its BTF (see `harness.predict.kernels`)."""
    return Model(rules=frozenset(rule.name for rule in RULES if any(has(*marker) for marker in rule.markers)))


class MemberTest(Protocol):
    """`has("bpf_prog_aux", "attach_btf_id")`: is there such a struct, with such a member (None: whatever members)?"""

    def __call__(self, struct: str, member: str | None) -> bool: ...
