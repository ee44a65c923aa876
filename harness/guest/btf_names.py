"""Names of types in a BTF: from a string to its place in the string section, from that to the types that bear it.

Both ways are searches in C. `IndexedNames` remembers the answers beforehand: for a process that will be asked often, or
is saved and restored.
"""

from __future__ import annotations

import sys
from array import array


class Names:
    """`strings` is a string section, `names` the name offset of each type in turn, as an array's bytes (u32)."""

    def __init__(self, strings: bytes, names: bytes) -> None:
        self.strings = strings
        self.names = names

    def offsets(self, name: bytes) -> list[int]:
        """Where that whole string stands."""
        needle = b"\0%s\0" % name
        found = []
        at = self.strings.find(needle)
        while at >= 0:
            found.append(at + 1)
            at = self.strings.find(needle, at + 1)
        return found

    def types(self, offset: int) -> list[int]:
        """Numbers of the types whose name begins at `offset` (counted over the base's strings too), rising."""
        return self._types(offset, 0, len(self.names))

    def _types(self, offset: int, at: int, end: int) -> list[int]:
        names, needle = self.names, offset.to_bytes(4, sys.byteorder)
        found = []
        at = names.find(needle, at, end)
        while at >= 0:
            if at % 4 == 0:
                found.append(at // 4)
            at = names.find(needle, at + 1, end)
        return found


class IndexedNames(Names):
    """The same without searching megabytes: some 30 MB for a vmlinux, and half a second of an emulated processor.

    Only for a BTF without base. ValueError when it has a string twice, which one look-up cannot tell.
    """

    def __init__(self, strings: bytes, names: bytes) -> None:
        from _operator import add
        from itertools import accumulate, count

        Names.__init__(self, strings, names)
        texts = strings[:-1].split(b"\0")
        starts = map(add, accumulate(map(len, texts), initial=0), count())  # each ends with a NUL
        self._places = dict(zip(texts, starts))
        if len(self._places) != len(texts):
            raise ValueError("a string stands there twice")
        numbers, positions = array("I", names), range(0, len(names), 4)
        self._first = dict(zip(reversed(numbers), reversed(positions)))
        self._last = dict(zip(numbers, positions))

    def offsets(self, name: bytes) -> list[int]:
        at = self._places.get(name)
        return [] if at is None else [at]

    def types(self, offset: int) -> list[int]:
        first = self._first.get(offset)
        return [] if first is None else self._types(offset, first, self._last[offset] + 4)
