"""BTF indexed once, opened again in no time: what a sweep keeps in the cache of each kernel's BTF.

Opening BTF costs a walk over 100,000 types and a search for names. The index file holds what those would find, in
front of the BTF's own types and strings, and is mapped, never read: answering a relocation touches a few pages of it.

    header   magic, sizes
    places   u32 for each type: where it starts in `types`, in words
    hashes   u32, rising: of the essential name (CRC-32, 30 bits) of each named type of a kind that relocations
             have as root
    ids      u32 for each hash
    types    the type section in this machine's byte order
    strings  the string section
"""

from __future__ import annotations

import mmap
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import repeat
from operator import and_
from pathlib import Path
from struct import Struct, calcsize
from typing import BinaryIO
from zlib import crc32

from harness.errors import UsageError
from harness.guest import btf as B
from harness.guest.names import essential_name

_HEADER = Struct("=8sIIIIIII")
_MAGIC = b"CMTXidx3"
_HASH_BITS = 0x3FFFFFFF
_NAMES_AT_ONCE = 256
_MOST_NAME_BYTES = 64 << 20  # a kernel has two
# The kinds whose names are hashed. Functions and variables are half of a vmlinux and no relocation's root: the few
# that are asked for (kfuncs, attach targets) are searched for.
ROOT_KINDS = frozenset(
    (
        B.BTF_KIND_INT, B.BTF_KIND_STRUCT, B.BTF_KIND_UNION, B.BTF_KIND_ENUM, B.BTF_KIND_ENUM64, B.BTF_KIND_FWD,
        B.BTF_KIND_TYPEDEF, B.BTF_KIND_FLOAT,
    )
)  # fmt: skip
FORMAT = f"3-{sys.byteorder}"  # part of the key in the cache


class _Source(B.Btf):
    """A BTF as read, whose tables are written down. A subclass, since they are nobody else's business. Every kernel
    passes through here once: what is done for each type is done in C, or not at all.
    """

    def _walk(self, layout: tuple[tuple[int, int], ...]) -> array[int]:
        """Where each type starts; on the way the names of root kinds and their ids are noted. This loop is the cost of
        the index: keep it at one look-up a type, in locals.
        """
        words, strides = self._words, _Strides(layout)
        infos = memoryview(words)[1:]
        places, names, ids = array("I"), list[int](), list[int]()
        place_of = places.append
        place, end = 0, len(words)
        try:
            while place < end:
                place_of(place)
                stride = strides[infos[place]]
                if stride > 0:
                    place += stride
                    continue
                if words[place]:
                    names.append(words[place])
                    ids.append(len(places))
                place -= stride
        except IndexError:
            raise self._bad(f"type [{len(places)}] is cut off or of an unknown kind") from None
        if place != end:
            raise self._bad(f"type [{len(places)}] runs over the end of the type section")
        self._root_names, self._root_ids = names, ids
        self._has_functions = any(info >> 24 & 0x7F == B.BTF_KIND_FUNC for info in strides)
        return places

    def _determine_pointer_size(self) -> int:
        """Of the named roots only: where types are sorted by name (7.2) `long` is far from the first."""
        words, places = self._words, self._places
        for id_ in self._root_ids:
            place = places[id_ - 1]
            is_int = words[place + 1] >> 24 & 0x7F == B.BTF_KIND_INT
            if is_int and words[place + 2] in (4, 8) and self.string(words[place]) in B._LONG_ALIASES:
                return words[place + 2]
        return calcsize("P")

    def write_index(self, out: BinaryIO) -> None:
        """Write the index file."""
        words, places, strings = self._words, self._places, self._strings
        hashes, ids = self._table()
        out.write(
            _HEADER.pack(
                _MAGIC, len(places), len(hashes), len(words), len(strings), self.pointer_size,
                int(self.byteorder == "little"), int(self._has_functions),
            )
        )  # fmt: skip
        out.writelines(memoryview(part) for part in (places, hashes, ids, words))
        out.write(strings)

    def _table(self) -> tuple[array[int], array[int]]:
        """Hashes, rising, and their ids."""
        hashes, ids = self._hashes(), self._root_ids
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        return array("I", map(hashes.__getitem__, order)), array("I", map(ids.__getitem__, order))

    def _hashes(self) -> list[int]:
        """Of the name of each root."""
        names = list(map(self._strings.__getitem__, map(slice, self._root_names, self._ends())))
        hashes = list(map(and_, map(crc32, names), repeat(_HASH_BITS)))
        for number in _flavored(names):
            hashes[number] = hash_of(names[number])
        return hashes

    def _ends(self) -> list[int]:
        """Where the name of each root ends. MalformedBtf when one begins outside of the strings, and when the names
        lie inside of each other and are so long that reading all would take hours.
        """
        names, ends, length = self._root_names, list[int](), 0
        for first in range(0, len(names), _NAMES_AT_ONCE):
            part = names[first : first + _NAMES_AT_ONCE]
            try:
                found = list(map(self._strings.index, repeat(b"\0"), part))
            except ValueError:
                raise self._bad(f"string offset {max(part)} outside the string section") from None
            length += sum(found) - sum(part)
            if length > _MOST_NAME_BYTES:
                raise self._bad("names lie inside of each other, and are too long")
            ends += found
        return ends


class _Strides(dict[int, int]):
    """How many words a type has, by its info word; negative for a kind whose name is hashed."""

    def __init__(self, layout: tuple[tuple[int, int], ...]) -> None:
        self._layout = layout

    def __missing__(self, info: int) -> int:
        kind = info >> 24 & 0x7F
        fixed, each = self._layout[kind]  # IndexError: an unknown kind
        stride = 3 + fixed + each * (info & 0xFFFFFF)
        found = self[info] = -stride if kind in ROOT_KINDS else stride
        return found


def _flavored(names: list[bytes]) -> Iterator[int]:
    """Which of the names hold a `___`: a few of thousands, so all are searched at once."""
    text, last = b"\0".join(names), -1
    at = text.find(b"___")
    while at >= 0:
        number = text.count(b"\0", 0, at)
        if number != last:
            yield number
        at, last = text.find(b"___", at + 1), number


def hash_of(name: bytes) -> int:
    """The hash of a type's name without its flavor, 30 bits: Python sorts such numbers quickest."""
    if b"___" in name:
        name = essential_name(name.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return crc32(name) & _HASH_BITS


def write_index(data: bytes, path: Path, name: str) -> int:
    """Index raw BTF into the file `path`; the number of types. MalformedBtf when it is not sound."""
    source = _Source(data, name)
    with path.open("wb") as out:
        source.write_index(out)
    return source.count - 1


class IndexedBtf(B.Btf):
    """A BTF opened by its index file, to be closed again (or used in `with`). UsageError for a file that is none.

    `all_kinds`: look for names of every kind, also of those that are no relocation's root (slower). `has_functions`:
    whether the BTF lists functions at all (some makers leave them out).
    """

    def __init__(self, path: Path, name: str, *, all_kinds: bool = False) -> None:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            fields = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"",)
            if fields[0] != _MAGIC:
                message = f"{path}: not an index of BTF"
                raise UsageError(message, remedy="remove it from the cache; it is made anew")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _, types, hashed, words, strings, pointer_size, little, functions = fields
        self.has_functions = bool(functions)
        self.name = name
        self.base = None
        self.count = types + 1
        self.start_id = 1
        self.byteorder = "little" if little else "big"
        self._pointer_size = pointer_size
        self._cache: dict[int, B.Type] = {}
        self._members: dict[int, list[tuple[str, int, int, int]]] = {}
        self._enumerators: dict[int, list[tuple[str, int]]] = {}
        self._ids: dict[str, list[int]] = {}
        self._all_kinds = all_kinds
        self._strings_start = 0
        self._views: list[memoryview] = []
        at = _HEADER.size
        self._places = self._table(at, types)  # type: ignore[assignment]
        self._hashes = self._table(at + 4 * types, hashed)
        self._hashed_ids = self._table(at + 4 * (types + hashed), hashed)
        self._words_at = at + 4 * (types + 2 * hashed)
        self._words = self._table(self._words_at, words)  # type: ignore[assignment]
        self._strings_at = self._words_at + 4 * words
        self._strings_size = strings
        if len(self._map) != self._strings_at + strings:
            message = f"{path}: cut off"
            raise UsageError(message, remedy="remove it from the cache; it is made anew")

    def _table(self, at: int, length: int) -> memoryview:
        view = memoryview(self._map)[at : at + 4 * length]
        self._views.append(view)
        self._views.append(view.cast("I"))
        return self._views[-1]

    def close(self) -> None:
        """Unmap; the BTF cannot be used afterwards."""
        for view in reversed(self._views):
            view.release()
        self._views.clear()
        self._map.close()

    def __enter__(self) -> IndexedBtf:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def string(self, offset: int) -> str:
        return self.string_bytes(offset).decode("utf-8", "surrogateescape") if offset else ""

    def string_bytes(self, offset: int) -> bytes:
        """The string at `offset`, without its NUL."""
        if offset >= self._strings_size:
            raise self._bad(f"string offset {offset} outside the string section")
        start = self._strings_at + offset
        return self._map[start : self._map.find(b"\0", start)]

    def ids_by_essential_name(self, essential: str) -> list[int]:
        """Ids of types whose name without flavor is `essential`, rising; of root kinds only, unless `all_kinds`."""
        known = self._ids.get(essential)
        if known is None:
            known = self._ids[essential] = self._searched(essential) if self._all_kinds else self._looked_up(essential)
        return known

    def _looked_up(self, essential: str) -> list[int]:
        wanted = hash_of(essential.encode("utf-8", "surrogateescape"))
        if essential_name(essential) != essential:
            return self._searched(essential)
        found = []
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            id_ = self._hashed_ids[at]
            if essential_name(self.type(id_).name) == essential:
                found.append(id_)
            at += 1
        return found

    def _searched(self, essential: str) -> list[int]:
        """The slow way, over all names."""
        names = ((id_, self._name(id_)) for id_ in range(1, self.count))
        return [id_ for id_, name in names if name and essential_name(name) == essential]

    def _name(self, id_: int) -> str:
        return self.string(self._words[self._places[id_ - 1]])

    def find(self, name: str, kind: int) -> int | None:
        """The first id with exactly that name and kind."""
        known = kind in ROOT_KINDS
        candidates = self.ids_by_essential_name(essential_name(name)) if known else self._ids_of_string(name)
        return next((id_ for id_ in candidates if self.kind(id_) == kind and self._name(id_) == name), None)

    def _ids_of_string(self, name: str) -> list[int]:
        """Ids of the types that have this name, whatever their kind: searches in C. (A name may also begin inside of
        another, so the NUL before it is not asked for.)
        """
        needle = name.encode("utf-8", "surrogateescape") + b"\0"
        found, at = [], self._map.find(needle, self._strings_at)
        while at >= 0:
            found += self._ids_of_offset(at - self._strings_at)
            at = self._map.find(needle, at + 1)
        return sorted(found)

    def _ids_of_offset(self, offset: int) -> list[int]:
        """Types whose first word is this offset: it is looked for everywhere, and taken where a type begins."""
        needle, start, end = offset.to_bytes(4, sys.byteorder), self._words_at, self._strings_at
        found, at = [], self._map.find(needle, start, end)
        while at >= 0:
            place, rest = divmod(at - start, 4)
            index = bisect_left(self._places, place)
            if rest == 0 and index < len(self._places) and self._places[index] == place:
                found.append(index + 1)
            at = self._map.find(needle, at + 1, end)
        return found
