"""Kernels that need not be booted: those of which another that is booted shows the same. Pure.

The outcome of a program on a kernel is all that is foretold of it: whether it loads, what becomes of each relocation
in it (the values of checks, not of offsets) and which of them live, and the helpers it comes to call. A booted kernel
stands for another where a program's outcome is the same on both. Everything else in which two kernels differ is said
as `unproven`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.model.cover import ANOTHER_RELEASE, NOT_KNOWN, UNTOLD, Cover, Remark, Share, StandIn
from harness.model.release import natural
from harness.predict.models import RULES
from harness.sweep.answers import Answer, Detail
from harness.sweep.points import Point
from harness.sweep.smallest import smallest

Outcome = Hashable


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """One kernel with what was foretold of each object on it, by the object's name (with its settings). `variant` is
    the kernel's, `cost` what a boot takes; of a kernel that is not `bootable` only the BTF is there. `digests` of the
    files, by the same names: other bytes are another object. Of `left_out` programs, by the same names, nothing is to
    be shown here. `silent` are objects of which a boot of this kernel would show nothing: another one has to.
    """

    kernel: str
    distro: str
    arch: str
    variant: str
    release: str
    rules: frozenset[str]
    cost: float
    answers: Mapping[str, Answer]
    digests: Mapping[str, str]
    bootable: bool = True
    left_out: Mapping[str, frozenset[str]] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    outcomes: Mapping[str, Mapping[str, Outcome]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, dict[str, Outcome]] = {}
        for name, answer in self.answers.items():
            without = self.left_out.get(name, frozenset())
            every = _outcomes(answer, self.digests[name])
            found[name] = {prog: outcome for prog, outcome in every.items() if prog not in without}
            if every and not found[name]:
                del found[name]
        object.__setattr__(self, "outcomes", found)

    def shown(self, name: str) -> Mapping[str, Outcome]:
        """What a boot of it would show of an object: outcomes by program."""
        return self.outcomes.get(name, {}) if self.bootable and name not in self.silent else {}

    def detail(self, name: str) -> Detail:
        found = self.answers[name].detail
        assert found is not None
        return found


def _outcomes(answer: Answer, digest: str) -> dict[str, Outcome]:
    detail = answer.detail
    assert detail is not None
    return {
        name: (
            digest,
            fate.key,
            tuple((index, answer.relocations[index].key[:2], answer.relocations[index].key[3], liveness)
                  for index, liveness in detail.progs[name].relocations),
            detail.progs[name].helpers,
        )
        for name, fate in answer.progs.items()
    }  # fmt: skip


def _flat(outcomes: Mapping[str, Mapping[str, Outcome]]) -> frozenset[Outcome]:
    return frozenset((name, prog, outcome) for name, progs in outcomes.items() for prog, outcome in progs.items())


def cover(foretold: Sequence[Foretold], always: Sequence[str] = (), notes: Sequence[str] = ()) -> Cover:
    """Which kernels to boot, and who stands for the others. `always`: kernels that are booted whatever they show."""
    bootable = {one.kernel: _flat({name: one.shown(name) for name in one.outcomes}) for one in foretold if one.bootable}
    found = smallest(bootable, {one.kernel: one.cost for one in foretold})
    if not found.chosen and not always:  # nothing is foretold of anything: one boot says so much
        found = replace(found, chosen=tuple(bootable)[:1])
    shown = frozenset[Outcome]().union(*bootable.values())
    everything = frozenset[Outcome]().union(*(_flat(one.outcomes) for one in foretold))
    booted = [one for one in foretold if one.kernel in found.chosen]
    rest = [one for one in foretold if one.kernel not in found.chosen]
    return Cover(
        kernels=len(foretold) + len(always),
        outcomes=len(shown),
        unshown=len(everything - shown),
        booted=(*found.chosen, *always),
        minimal=found.minimal,
        at_least=found.at_least + len(always),
        always=tuple(always),
        stand_ins=tuple(_stand_in(one, name, booted) for one in rest for name in one.outcomes),
        notes=tuple(notes),
    )


def _stand_in(one: Foretold, name: str, booted: Sequence[Foretold]) -> StandIn:
    shares, uncovered = _shares(one, name, booted)
    remarks = [remark for share in shares for remark in _remarks(one, share[0], name, share[1])]
    unproven = dict.fromkeys(remark for held, remark in remarks if not held)
    return StandIn(
        kernel=one.kernel,
        distro=one.distro,
        arch=one.arch,
        release=one.release,
        object=name,
        by=tuple(Share(kernel=other.kernel, progs=progs) for other, progs in shares),
        uncovered=uncovered,
        unproven=tuple(unproven),
        checked=tuple(dict.fromkeys(remark for held, remark in remarks if held)),
        bootable=one.bootable,
    )


def _shares(
    one: Foretold, name: str, booted: Sequence[Foretold]
) -> tuple[list[tuple[Foretold, tuple[str, ...]]], tuple[str, ...]]:
    """The fewest booted kernels that show this one's programs, the nearest of equals; and programs nobody shows."""
    left = dict(one.outcomes[name])
    found: list[tuple[Foretold, tuple[str, ...]]] = []
    while left:
        same = {
            other.kernel: tuple(prog for prog in left if other.shown(name).get(prog) == left[prog])
            for other in booted
        }
        best = max(booted, key=lambda other: (len(same[other.kernel]), _nearness(one, other)), default=None)
        if best is None or not same[best.kernel]:
            break
        found.append((best, same[best.kernel]))
        for prog in same[best.kernel]:
            del left[prog]
    return found, tuple(left)


def _nearness(one: Foretold, other: Foretold) -> tuple[object, ...]:
    """The same architecture first, then the same rules, the nearest release, the same variant."""
    numbers = [[word[1] for word in natural(item.release)[:2]] for item in (one, other)]
    apart = sum(abs(a - b) * scale for a, b, scale in zip(*numbers, (1000, 1), strict=False))
    return one.arch == other.arch, -len(one.rules ^ other.rules), -apart, one.variant == other.variant


# -- what two kernels of one outcome may still differ in


def _remarks(one: Foretold, other: Foretold, name: str, progs: tuple[str, ...]) -> Iterator[tuple[bool, Remark]]:
    """(held against BTF and the same, what) for the programs that `other` shows for `one`."""
    if one.arch != other.arch:
        yield False, Remark(what="architecture", text=f"{one.arch} for {other.arch}: its JIT, its trampolines")
    yield from ((False, remark) for remark in _verifier(one, other))
    here, there = one.detail(name), other.detail(name)
    for prog in progs:
        helpers = here.progs[prog].helpers
        if helpers:
            text = f"{', '.join(helpers)}: there; whether {here.progs[prog].prog_type} programs may call them is not"
            yield False, Remark(what="helpers", text=f"{text} in BTF", prog=prog)
        yield from _point("attach", here.progs[prog].point, there.progs[prog].point, other.kernel, prog)
    for mine, its in zip(here.points, there.points, strict=True):
        yield from _point("kfunc", mine, its, other.kernel, None)
    values = dict(there.externs)
    for key, value in here.externs:
        if value != values.get(key) and key != "LINUX_KERNEL_VERSION":
            text = f"{key} is {_shown(value)}, {_shown(values.get(key))} on {other.kernel}"
            yield False, Remark(what="config", text=text)


def _shown(value: object) -> str:
    if value is None:
        return NOT_KNOWN
    return str(value) if value != "" else "empty"


def _verifier(one: Foretold, other: Foretold) -> Iterator[Remark]:
    for rule in RULES:
        if (rule.name in one.rules) != (rule.name in other.rules):
            has = "has" if rule.name in one.rules else "lacks"
            yield Remark(what="verifier", text=f"{has} the rule {rule.name}, unlike {other.kernel} ({rule.text})")
    if one.release != other.release:
        text = f"{ANOTHER_RELEASE}{other.release}"
        yield Remark(what="verifier", text=text)


def _point(
    what: str, mine: Point | None, its: Point | None, other: str, prog: str | None
) -> Iterable[tuple[bool, Remark]]:
    """One name the program needs, here and on the booted kernel."""
    if mine is None:
        return
    name = f"{mine.what} {mine.name}"
    if mine.found is None:
        yield False, Remark(what=what, text=f"{name}: {UNTOLD}", prog=prog)
    elif not mine.found:
        where = "neither here nor on " if its is not None and its.found is False else "not in this BTF; it is on "
        text = f"{name}: {where}{other}" if its is not None and its.found is not None else f"{name}: not in this BTF"
        yield False, Remark(what=what, text=text, prog=prog)
    elif its is None or its.signature is None or mine.signature is None:
        yield False, Remark(what=what, text=f"{name}: there, its signature is not comparable", prog=prog)
    elif mine.signature != its.signature:
        text = f"{name}: {mine.signature}; on {other}: {its.signature}"
        yield False, Remark(what=what, text=text, prog=prog)
    else:
        yield True, Remark(what=what, text=f"{name}: there, with the same signature {mine.signature}", prog=prog)
