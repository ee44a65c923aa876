"""Naming a set of kernels briefly: `debian-5.10-*` rather than four identities, `all but ...` when that is shorter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from harness.model.reading import matches


def describe(chosen: Collection[str], universe: Sequence[str]) -> str:
    """`chosen` in words, in the order of `universe`, of which it is a part.

    The globs hold for this universe: none of them covers a kernel that was not chosen.
    """
    wanted = frozenset(chosen)
    if len(wanted) == len(universe):
        return "every kernel" if len(universe) > 1 else universe[0]
    rest = tuple(kernel for kernel in universe if kernel not in wanted)
    named = _globs(tuple(kernel for kernel in universe if kernel in wanted), rest)
    others = "all but " + _globs(rest, tuple(wanted))
    return named if named.count(",") <= others.count(",") else others


@lru_cache(maxsize=4096)
def _globs(wanted: tuple[str, ...], others: tuple[str, ...]) -> str:
    """The fewest globs that cover `wanted` and none of `others`, chosen greedily; a glob must stand for at least
    two.
    """
    left = list(wanted)
    found: dict[str, str] = {}
    patterns = [p for p in dict.fromkeys(_patterns(wanted)) if not any(matches((p,), other) for other in others)]
    while left:
        covers = {pattern: [kernel for kernel in left if matches((pattern,), kernel)] for pattern in patterns}
        best = max(patterns, key=lambda pattern: (len(covers[pattern]), -len(pattern)), default="")
        if len(covers.get(best, ())) < 2:
            found |= {kernel: kernel for kernel in left}
            break
        found[covers[best][0]] = best
        left = [kernel for kernel in left if kernel not in covers[best]]
    return ", ".join(found[kernel] for kernel in wanted if kernel in found)


def _patterns(kernels: Sequence[str]) -> list[str]:
    """Globs made of a kernel's first words, its last words, or both."""
    patterns = []
    for kernel in kernels:
        words = kernel.split("-")
        ends = [(head, tail) for head in range(len(words)) for tail in range(len(words) - head) if head + tail]
        patterns += ["-".join([*words[:head], "*", *words[len(words) - tail :]]) for head, tail in ends]
    return patterns


def common_words(kernels: Sequence[str]) -> tuple[list[list[str]], str]:
    """Column heads: each kernel's words without the first ones that all share, and those shared words.

    `debian-6.1-cloud-amd64`, `debian-6.12-rt-amd64` -> [["6.1", "cloud", "amd64"], ["6.12", "rt", "amd64"]], "debian-".
    """
    words = [kernel.split("-") for kernel in kernels]
    shared = 0
    while all(len(item) > shared + 1 for item in words) and len({item[shared] for item in words}) == 1:
        shared += 1
    shared = shared if len(kernels) > 1 else 0
    return [item[shared:] for item in words], "".join(f"{word}-" for word in words[0][:shared]) if words else ""
