"""Which config switches a struct's member stands under, read from the kernel tree it was built from.

Text only, no C front end: a definition is found by its first line, preprocessor conditions are kept as a stack, and a
declaration is the member's name before `;`, `,`, `[`, `:` or an attribute. Good enough to name a line for a person to
look at. Held against BTF of kernels built from the same source by tests/unit/test_struct_source.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_DIRECTIVE = re.compile(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)")
_OPTION = re.compile(r"\bCONFIG_\w+")
_DEFINITION = re.compile(r"^\s*(?:typedef\s+)?(?:struct|union|enum)\s+(\w+)\b[^;(){}=*]*(?:\{|$)")
_DEFINED = re.compile(rb"^[ \t]*(?:typedef\s+)?(?:struct|union|enum)\s+(\w+)\b[^;(){}=*]*\{", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# Where the types are that programs read; drivers keep theirs to themselves, and reuse names.
_DIRECTORIES = ("include", "kernel", "fs", "mm", "block", "net", "security", "drivers/base")

Wanted = tuple[str, str]  # a struct, union or enum by name, and a member; "" for the type itself


@dataclass(frozen=True, kw_only=True)
class Condition:
    """`option` decides whether a member is compiled in: `file` (below the tree) and `line` of the declaration."""

    option: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class StructSource:
    """The types of a kernel tree; `arch` is the directory below arch/."""

    tree: Path
    arch: str

    def conditions(self, wanted: Collection[Wanted]) -> dict[Wanted, tuple[Condition, ...]]:
        """For each wanted member the switches its declaration stands under, the nearest first. Those whose
        declaration is not found, or stands under none, are left out; so are those declared more than once, one of
        them unconditionally.
        """
        found: dict[Wanted, list[tuple[Condition, ...]]] = {}
        for file in dict.fromkeys(file for name, _ in wanted for file in self._files.get(name, ())):
            text = (self.tree / file).read_text(encoding="utf-8", errors="replace")
            for item, where in _declarations(text, file, wanted):
                found.setdefault(item, []).append(where)
        return {item: tuple(dict.fromkeys(condition for each in places for condition in each))
                for item, places in found.items() if all(places)}  # fmt: skip

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Type -> files that define it."""
        found: dict[str, list[str]] = {}
        for top in (*_DIRECTORIES, f"arch/{self.arch}/include", f"arch/{self.arch}/kernel"):
            for directory, names, files in os.walk(self.tree / top):
                names.sort()
                for path in (Path(directory, name) for name in sorted(files) if name.endswith((".h", ".c"))):
                    for name in dict.fromkeys(_DEFINED.findall(path.read_bytes())):
                        found.setdefault(name.decode(), []).append(str(path.relative_to(self.tree)))
        return found


def _declarations(
    text: str, file: str, wanted: Collection[Wanted]
) -> Iterator[tuple[Wanted, tuple[Condition, ...]]]:
    """Every wanted declaration in a file, with what it stands under."""
    stack: list[tuple[str, ...]] = []
    inside, depth = "", 0
    for number, line in enumerate(_without_comments(text).split("\n"), 1):
        directive = _DIRECTIVE.match(line)
        if directive:
            _follow(stack, directive[1], directive[2])
            continue
        here = tuple(Condition(option=o, file=file, line=number) for group in reversed(stack) for o in group)
        if not inside:
            start = _DEFINITION.match(line)
            if start is None or not any(start[1] == name for name, _ in wanted):
                continue
            inside, depth = start[1], 0
        yield from (((inside, member), here) for member in _declared(line, inside, wanted, first=depth == 0))
        depth += line.count("{") - line.count("}")
        # Before its first brace the definition has not begun; `struct x` may also be the start of a declaration.
        if depth <= 0 and ("}" in line or ";" in line or not line.strip()):
            inside = ""


def _declared(line: str, inside: str, wanted: Collection[Wanted], *, first: bool) -> Iterator[str]:
    """The wanted members of a type that a line declares; "" for the line that begins it."""
    for name, member in wanted:
        if name == inside and (first if not member else _declares(line, member)):
            yield member


def _declares(line: str, member: str) -> bool:
    return member in line and re.search(rf"\b{re.escape(member)}\b\s*(?:[;,\[:=)}}]|__|$)", line) is not None


def _without_comments(text: str) -> str:
    return _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)


def _follow(stack: list[tuple[str, ...]], directive: str, rest: str) -> None:
    """One preprocessor line; what follows `#else` hangs on the same switches as what came before it."""
    options: Sequence[str] = _OPTION.findall(rest)
    if directive in {"if", "ifdef", "ifndef"}:
        stack.append(tuple(options))
    elif directive == "elif" and stack:
        stack[-1] = (*stack[-1], *options)
    elif directive == "endif" and stack:
        stack.pop()
