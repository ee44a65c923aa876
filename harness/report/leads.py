"""From a relocation that only one of two kernels has a target for to a suggestion, with C that serves both kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.guest.btf import Btf
from harness.guest.names import essential_name
from harness.model.result import field_of
from harness.report import flavor_code
from harness.report.renamed import enumerator_successor, named, type_successor
from harness.report.successor import Suggestion, successor

_KEYWORD = re.compile(r"^<\w+> \[\d+\] (struct|union|enum|typedef) ")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A relocation's local spec (libbpf's text), and the kernel that lacks what it is about."""

    spec: str
    lacks: str


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A suggestion for what one of the kernels lacks, with C that serves both, if there is a plain way."""

    field: str
    lacks: str
    suggestion: Suggestion
    code: str | None


def lead(lost: Lost, has: Btf, lacks: Btf) -> Lead | None:
    """What it likely is on the kernel that lacks it; None where nothing is likely."""
    name, keyword = field_of(lost.spec), _KEYWORD.match(lost.spec)
    if keyword is None:
        return None
    if "::" in name:
        found = _enumerator(name, has, lacks)
    elif "." in name:
        root, *path = name.split("[", 1)[0].split(".")
        found = _field(keyword[1], essential_name(root), path, has, lacks)
    else:
        found = _type(keyword[1], essential_name(name), has, lacks)
    return None if found is None else Lead(field=name, lacks=lost.lacks, suggestion=found[0], code=found[1])


_Found = tuple[Suggestion, str | None]


def _field(keyword: str, root: str, path: Sequence[str], has: Btf, lacks: Btf) -> _Found | None:
    if named(lacks, keyword, root) is None:
        return _field_of_renamed(keyword, root, path, has, lacks)
    # Of `a.b.c` it may be `b` that has gone: ask for the shortest part that only one kernel has.
    for end in range(1, len(path) + 1):
        found = successor(has, lacks, root, path[:end])
        if found is not None:
            known, there = [*found.known, *path[end:]], [*found.found, *path[end:]]
            return found, flavor_code.both(has, known, lacks, there, root)
    return None


def _field_of_renamed(keyword: str, root: str, path: Sequence[str], has: Btf, lacks: Btf) -> _Found | None:
    """The whole type has gone: the same member of its successor."""
    found = type_successor(has, lacks, keyword, root)
    if found is None:
        return None
    return found, flavor_code.both(has, path, lacks, path, root, renamed=found.found[0])


def _enumerator(name: str, has: Btf, lacks: Btf) -> _Found | None:
    enum, _, enumerator = name.partition("::")
    enum, enumerator = essential_name(enum), essential_name(enumerator)
    if named(lacks, "enum", enum) is None:
        found = type_successor(has, lacks, "enum", enum)
        return None if found is None else (found, flavor_code.either_type(has, lacks, "enum", enum, found.found[0]))
    found = enumerator_successor(has, lacks, enum, enumerator)
    return None if found is None else (found, flavor_code.either_enumerator(enum, enumerator, found.found[0]))


def _type(keyword: str, name: str, has: Btf, lacks: Btf) -> _Found | None:
    found = type_successor(has, lacks, keyword, name)
    return None if found is None else (found, flavor_code.either_type(has, lacks, keyword, name, found.found[0]))
